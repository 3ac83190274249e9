"""A worker with other packages is refused by name."""

from __future__ import annotations

import pytest

from rlkit.errors import RecipeError
from rlkit.packages import installed, refuse_others


def test_equal_packages_are_accepted() -> None:
    assert {"python", "torch", "ray"} <= installed().keys()
    refuse_others("learner rank 0 on 10.0.0.1", installed(), installed())


def test_the_refusal_names_worker_package_and_both_versions() -> None:
    mine = {"python": "3.11.7", "torch": "2.13.0", "numpy": "2.4.6"}
    theirs = {"python": "3.11.7", "torch": "2.12.1"}
    with pytest.raises(RecipeError) as caught:
        refuse_others("rollout worker 3 on 10.0.0.7", theirs, mine)
    assert str(caught.value) == (
        "cluster: rollout worker 3 on 10.0.0.7 runs on other packages (torch 2.12.1, here 2.13.0; numpy missing, here "
        "2.4.6); install the same constraints.txt on every machine"
    )
