"""What pages say about a replica."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from cvmfs_publish.state.model import Failure, Replica
from cvmfs_publish.web.views import plan_lags

NOW = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("revision", "failure", "text"),
    [
        (12, None, "up to date"),
        (11, None, "1 revision behind"),
        (12, Failure("wrong-key", "signed by somebody else"), "wrong key"),
    ],
)
def test_a_replica_is_behind_or_what_is_wrong_with_it(
    revision: int, failure: Failure | None, text: str
) -> None:
    (lag,) = plan_lags([Replica("http://one", revision, NOW, failure)], 12)
    assert lag.text == text
