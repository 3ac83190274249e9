"""Placement: which processes share a bundle, what is refused, and how many nodes that takes."""

from __future__ import annotations

import pytest

from rlkit.errors import RecipeError
from rlkit.placement import Bundle, Node, bundles, nodes_needed, refuse_shortage, resources, shown
from rlkit.recipe import Cluster


def cluster(**settings: object) -> Cluster:
    return Cluster(kind="ray", **settings)  # type: ignore[arg-type]


def test_colocated_puts_the_same_number_of_workers_beside_each_rank() -> None:
    found = bundles(
        cluster(
            placement="colocated",
            rollout_workers=4,
            learner_ranks=2,
            threads_per_worker=3,
            gpus_per_learner_rank=0.5,
            gpus_per_rollout_worker=0.25,
        )
    )
    # 1 rank + 2 workers of 3 threads each; 0.5 + 2 · 0.25 of a GPU
    assert [(b.cpus, b.gpus, b.ranks, b.workers) for b in found] == [(9, 1.0, (0,), (0, 1)), (9, 1.0, (1,), (2, 3))]
    assert resources(found[0]) == {"CPU": 9.0, "GPU": 1.0}


def test_disaggregated_gives_every_process_a_bundle_on_its_own_nodes() -> None:
    found = bundles(
        cluster(
            placement="disaggregated",
            rollout_workers=2,
            gpus_per_learner_rank=2,
            gpus_per_rollout_worker=1,
            learner_nodes="train",
            rollout_nodes="sample",
        )
    )
    assert [(b.gpus, b.ranks, b.workers, b.nodes) for b in found] == [
        (2, (0,), (), "train"),
        (1, (), (0,), "sample"),
        (1, (), (1,), "sample"),
    ]


def test_mixed_shares_one_worker_with_each_rank_and_gives_the_others_their_own() -> None:
    found = bundles(cluster(placement="mixed", rollout_workers=3, learner_ranks=1))
    assert [(b.cpus, b.ranks, b.workers) for b in found] == [(2, (0,), (0,)), (1, (), (1,)), (1, (), (2,))]
    assert resources(found[0]) == {"CPU": 2.0}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"placement": "colocated", "rollout_workers": 3, "learner_ranks": 2}, "use 4, or cluster.placement=mixed"),
        ({"placement": "colocated", "rollout_workers": 1, "learner_ranks": 2}, "use 2, or cluster.placement=mixed"),
        ({"placement": "mixed", "rollout_workers": 1}, "use 2 or more, or cluster.placement=colocated"),
        ({"placement": "colocated", "gpus_per_learner_rank": 1.0}, "give both a share, or neither"),
        (
            {"placement": "colocated", "gpus_per_learner_rank": 0.6, "gpus_per_rollout_worker": 0.5},
            "their shares add up to 1.1",
        ),
        ({"placement": "disaggregated", "gpus_per_rollout_worker": 0.5}, "cluster.gpus_per_rollout_worker=0.5; use 1"),
        ({"placement": "colocated", "learner_nodes": "big"}, "all processes on the same nodes"),
        ({"rollout_nodes": "big"}, "cluster.rollout_nodes: 'big' with cluster.placement=free, which reserves nothing"),
    ],
)
def test_a_placement_that_cannot_be_names_the_setting_and_the_fix(settings: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        bundles(cluster(**settings))
    assert message in str(caught.value)


def test_more_workers_than_cpus_or_gpus_are_refused_with_both_numbers() -> None:
    nodes = [Node(cpus=4, gpus=1), Node(cpus=2)]
    refuse_shortage(cluster(rollout_workers=5), nodes)  # 5 + 1 = 6 threads fit
    with pytest.raises(RecipeError) as caught:
        refuse_shortage(cluster(rollout_workers=6), nodes)
    assert str(caught.value) == (
        "cluster.rollout_workers: 1 learner rank + 6 rollout workers need 7 CPUs; "
        "the cluster has 2 nodes: 4 CPUs and 1 GPU, 2 CPUs"
    )
    with pytest.raises(RecipeError, match=r"learner_ranks: 2 learner ranks \+ 1 rollout worker need 2 GPUs"):
        refuse_shortage(cluster(learner_ranks=2, gpus_per_learner_rank=1), nodes)


def test_a_bundle_larger_than_every_node_is_refused_although_the_sum_would_do() -> None:
    nodes = [Node(cpus=4), Node(cpus=4)]
    with pytest.raises(RecipeError) as caught:  # 5 + 5 threads in one bundle, 8 in all but 4 on a node
        refuse_shortage(cluster(placement="colocated", threads_per_worker=3), nodes)
    message = "cluster.threads_per_worker: 1 learner rank + 1 rollout worker need 6 CPUs on one node"
    assert str(caught.value).startswith(message)
    with pytest.raises(RecipeError, match="gpus_per_rollout_worker: 1 rollout worker need 1 CPU and 1 GPU on one node"):
        refuse_shortage(cluster(gpus_per_rollout_worker=1), nodes)


def test_an_unknown_node_group_is_named_with_the_nearest() -> None:
    asked = cluster(placement="disaggregated", rollout_nodes="samplers")
    with pytest.raises(RecipeError) as caught:
        refuse_shortage(asked, [Node(cpus=8, group="sampler"), Node(cpus=8, group="trainer")])
    assert str(caught.value) == (
        "cluster.rollout_nodes: the cluster has no node group 'samplers'; did you mean 'sampler'?"
    )
    with pytest.raises(RecipeError, match="its nodes have no groups"):
        refuse_shortage(asked, [Node(cpus=8)])


def test_a_group_is_needed_where_its_nodes_have_the_room() -> None:
    asked = cluster(placement="disaggregated", rollout_nodes="small", threads_per_worker=4)
    with pytest.raises(RecipeError, match="1 rollout worker need 4 CPUs on one node"):
        refuse_shortage(asked, [Node(cpus=64), Node(cpus=2, group="small")])


def test_nodes_are_counted_by_first_fit_and_a_share_stays_on_one_gpu() -> None:
    node = Node(cpus=8, gpus=2)
    shares = [Bundle(cpus=1, gpus=0.6) for _ in range(4)]  # 2.4 GPUs, but 0.6 + 0.6 is more than one: 2 to a node
    assert nodes_needed(shares, node) == 2
    assert nodes_needed([Bundle(cpus=1, gpus=0.5) for _ in range(4)], node) == 1
    assert nodes_needed([Bundle(cpus=5), Bundle(cpus=3), Bundle(cpus=4)], node) == 2  # 5 + 3, 4
    with pytest.raises(RecipeError, match="a bundle of 9 CPUs does not fit a node of 8 CPUs and 2 GPUs"):
        nodes_needed([Bundle(cpus=9)], node)


def test_equal_bundles_are_shown_on_one_line() -> None:
    asked = cluster(placement="mixed", rollout_workers=3, gpus_per_learner_rank=0.5, gpus_per_rollout_worker=0.5)
    assert shown(asked).splitlines() == [
        "mixed",
        "1 x [1 learner rank + 1 rollout worker]: 2 CPUs and 1 GPU",
        "2 x [1 rollout worker]: 1 CPU and 0.5 GPUs",
    ]
    assert shown(cluster()).splitlines()[0] == "free: nothing is reserved"
