"""The network policies: each says an edge that is needed, and every edge that is needed is said.

Among pods of ours an edge is open only if a policy lets the caller out and another lets it in. Policies are
read as Kubernetes reads them: those that select a pod add up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from search.schedules import rendering
from tests.contracts import schedules
from tests.deploy.manifests import Document, Pod, pods

COMPONENT = "app.kubernetes.io/component"

DATABASE = 5432
JOBS = 8265
EVERY_PORT = 0
"""Stands for a rule that names no port."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One port of one peer of one policy."""

    policy: str
    direction: str
    selector: Document
    peer: Document
    port: int


def rules(documents: list[Document]) -> Iterator[Rule]:
    """All that the policies allow."""
    for document in documents:
        if document["kind"] != "NetworkPolicy":
            continue
        spec = document["spec"]
        for direction, side in (("ingress", "from"), ("egress", "to")):
            if spec.get(direction):
                assert direction.capitalize() in spec["policyTypes"], document["metadata"]["name"]
            for rule in spec.get(direction, []):
                for peer in rule[side]:
                    for port in rule.get("ports", [{"port": EVERY_PORT}]):
                        yield Rule(
                            document["metadata"]["name"], direction, spec["podSelector"], peer, port["port"]
                        )


def selects(selector: Document, labels: dict[str, str]) -> bool:
    """Whether a label selector fits."""
    if not selector.get("matchLabels", {}).items() <= labels.items():
        return False
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] == "In"
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return True


def is_inside(peer: Document) -> bool:
    """Whether a peer is a pod of this namespace."""
    return "podSelector" in peer and "namespaceSelector" not in peer


def opened(documents: list[Document]) -> set[tuple[str, str, int]]:
    """Edges between our pods, by component, that both sides allow; port 0: every port."""
    every, there = list(rules(documents)), pods(documents)
    found = set()
    for caller in there:
        for callee in there:
            out = allowed(every, "egress", caller, callee)
            into = allowed(every, "ingress", callee, caller)
            both = {port for port in out | into if {port, EVERY_PORT} & out and {port, EVERY_PORT} & into}
            found |= {(caller.labels[COMPONENT], callee.labels[COMPONENT], port) for port in both}
    return found


def allowed(every: list[Rule], direction: str, pod: Pod, peer: Pod) -> set[int]:
    return {
        rule.port
        for rule in every
        if rule.direction == direction and is_inside(rule.peer)
        and selects(rule.selector, pod.labels) and selects(rule.peer["podSelector"], peer.labels)
    }  # fmt: skip


def test_nothing_is_allowed_that_is_not_said(overlay: list[Document]) -> None:
    deny = next(one for one in overlay if one["metadata"]["name"] == "default-deny")
    assert deny["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_both_ends_say_the_same_edges(overlay: list[Document]) -> None:
    """A policy that lets in whom nobody sends, or out to where nobody waits, is too wide or forgotten."""
    with_schedule = [*overlay, *scheduled(address="http://shoal-head-svc:8265")]
    every, there = list(rules(with_schedule)), pods(with_schedule)
    for caller in there:
        for callee in there:
            out = allowed(every, "egress", caller, callee)
            assert out == allowed(every, "ingress", callee, caller), f"{caller.of} → {callee.of}"


def scheduled(**options: Any) -> list[Document]:
    """What `shoal schedule render --to kubernetes` writes for a schedule with these options."""
    made = schedules.record(webhook="https://example.org/notes", options=options)
    [text] = rendering.rendered(made, "kubernetes").values()
    return list(yaml.safe_load_all(text))


def test_the_edges_between_our_pods_are_these(rendered: dict[str, list[Document]]) -> None:
    clients = {"migrate", "roles", "worker", "web", "metrics", "backup", "ray-head", "ray-worker"}
    ray = {
        (one, other, EVERY_PORT) for one in ("ray-head", "ray-worker") for other in ("ray-head", "ray-worker")
    }
    assert opened(rendered["prod"]) == {(one, "database", DATABASE) for one in clients} | ray
    for name in ("kueue", "raycronjob"):
        assert opened(rendered[name]) == {(one, "database", DATABASE) for one in clients - {"backup"}} | ray


def test_a_rendered_schedule_reaches_what_it_needs(rendered: dict[str, list[Document]]) -> None:
    for name in ("dev", "prod"):
        documents = rendered[name]
        added = opened([*documents, *scheduled(address="http://shoal-head-svc:8265")]) - opened(documents)
        assert added == {("schedule", "database", DATABASE), ("schedule", "ray-head", JOBS)}


def test_what_needs_the_database_reaches_it_and_nothing_else_does(overlay: list[Document]) -> None:
    """A pod that is given a URL of the database is let out to it."""
    outward = [rule for rule in rules(overlay) if rule.direction == "egress" and rule.port == DATABASE]
    assert outward
    for pod in pods(overlay):
        component = pod.labels[COMPONENT]
        given = any(
            variable["name"] == "SHOAL_DATABASE_URL_FILE"
            for container in pod.containers()
            for variable in container.get("env", [])
        )
        lets_out = any(selects(rule.selector, pod.labels) for rule in outward)
        assert lets_out == given, f"{component}: {pod.of}"


def test_every_rule_selects_a_pod_of_ours(overlay: list[Document]) -> None:
    labels = [pod.labels for pod in pods([*overlay, *scheduled(in_process=True)])]
    for rule in rules(overlay):
        assert any(selects(rule.selector, one) for one in labels), rule
        if is_inside(rule.peer):
            assert any(selects(rule.peer["podSelector"], one) for one in labels), rule


def test_every_port_that_is_let_in_is_open(overlay: list[Document]) -> None:
    for rule in rules(overlay):
        if rule.direction == "ingress" and rule.port != EVERY_PORT:
            selected = [pod for pod in pods(overlay) if selects(rule.selector, pod.labels)]
            assert selected, rule
            for pod in selected:
                assert rule.port in open_ports(pod), f"{rule.policy}: {pod.of} listens on no port {rule.port}"


def open_ports(pod: Pod) -> set[int]:
    ports: list[dict[str, Any]] = [port for one in pod.containers() for port in one.get("ports", [])]
    return {port["containerPort"] for port in ports}


def test_only_names_the_database_and_the_api_server_are_asked_outside(overlay: list[Document]) -> None:
    outside = {
        (rule.policy, rule.port)
        for rule in rules(overlay)
        if rule.direction == "egress" and not is_inside(rule.peer)
    }
    assert outside <= {
        ("names", 53),
        ("clients-to-database", DATABASE),
        ("autoscaler-to-api-server", 443),
        ("autoscaler-to-api-server", 6443),
        ("web-to-provider", 443),
        ("notes-from-ray-head", 443),
        ("schedules-to-outside", 443),
        ("schedules-to-outside", 6443),
    }
    assert ("names", 53) in outside
