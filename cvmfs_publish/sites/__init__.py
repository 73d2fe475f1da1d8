"""Site configurations, and what worker nodes of a site get from them."""
