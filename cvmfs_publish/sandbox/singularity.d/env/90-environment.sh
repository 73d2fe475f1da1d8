#!/bin/sh
# Variables of this image that are not in its OCI configuration.
