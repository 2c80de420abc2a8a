"""The instances of a model, for their logs."""

from __future__ import annotations

from typing import Any

from cli.server import Server
from cli.target import Kind, Target, path_of


def ended(server: Server, target: Target) -> list[str]:
    """The model's instances that have stopped or failed, oldest first."""
    records = server.get("/instances", all="true")["data"]
    ours = [one for one in records if target.name in (one.get("profile"), one["model_name"])]
    return [one["instance_id"] for one in sorted(ours, key=lambda one: one["created_at"])]


def latest(server: Server, target: Target) -> dict[str, Any] | None:
    """The record of the instance, or of the model's newest one; None if it never had any. Raises CliError."""
    if target.kind is Kind.INSTANCE:
        return record_of(server, target.name)
    replicas: list[str] = server.get(target.path)["replicas"] or ended(server, target)
    return record_of(server, replicas[-1]) if replicas else None


def record_of(server: Server, instance_id: str) -> dict[str, Any]:
    record: dict[str, Any] = server.get(path_of(Kind.INSTANCE, instance_id))
    return record
