"""Everything that was found in the datasets at one place, ready to be shown."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import camox
from camox.data.audit.dataset import Audited, Duplicate, count_findings
from camox.data.audit.files import Examined
from camox.data.audit.findings import KINDS, Finding, Kind
from camox.data.audit.statistics import summarise
from camox.tracking.console import counted


@dataclass(frozen=True)
class Result:
    """What `camox data check` found at `path`."""

    path: Path
    audited: tuple[Audited, ...]
    duplicates: tuple[Duplicate, ...]
    notices: tuple[str, ...]

    @property
    def problems(self) -> int:
        """How many there are."""
        return count_findings(self.audited, self.duplicates, "problem")

    @property
    def images(self) -> int:
        """How many were examined."""
        return sum(len(one.examined) for one in self.audited)

    @cached_property
    def by_kind(self) -> Mapping[str, Sequence[Finding]]:
        """Findings by kind, in the order of `KINDS`: problems first. One file of two datasets counts once."""
        every = list(dict.fromkeys(finding for one in self.audited for finding in one.findings))
        found = {kind: [finding for finding in every if finding.kind == kind] for kind in KINDS}
        ordered = sorted(found, key=lambda kind: KINDS[kind].severity != "problem")
        return {kind: found[kind] for kind in ordered if found[kind]}

    @cached_property
    def _root(self) -> str:
        folders = {
            str(f) for one in self.audited for part in one.dataset.located.parts for f in (part.images, part.masks)
        }
        return os.path.commonpath(folders) if folders else ""

    def shown(self, path: Path) -> str:
        """A path without what all datasets' folders have in common."""
        return str(path.relative_to(self._root)) if path.is_relative_to(self._root) else str(path)

    def at(self, place: tuple[int, int]) -> Examined:
        """What an image that a `Duplicate` names showed."""
        return self.audited[place[0]].examined[place[1]]

    @property
    def verdict(self) -> str:
        """The outcome in one line, and what to do."""
        images = counted(self.images, "image")
        found = f"no problems in {images}: ready to train on"
        if self.problems:
            found = f"{counted(self.problems, 'problem')} in {images}: mend each as is said with it, then check again"
        notes = count_findings(self.audited, self.duplicates, "note")
        if not notes:
            return found
        advised = sum(len(findings) for kind, findings in self.by_kind.items() if _is_hint(KINDS[kind]))
        advised += sum(one.severity == "note" for one in self.duplicates)
        look = f"; look at {advised} of them, as is said there" if advised else ": nothing to do"
        return f"{found}. {counted(notes, 'note')} on what the loader deals with by itself{look}"

    def plain(self) -> dict[str, Any]:
        """All of it, as data_check.json holds it."""
        return {
            "path": str(self.path),
            "camox": camox.__version__,
            "status": "problems" if self.problems else "clean",
            "problems": self.problems,
            "notices": list(self.notices),
            "datasets": [_plain_dataset(one) for one in self.audited],
            "near_duplicates": [self._plain_duplicate(duplicate) for duplicate in self.duplicates],
            "kinds": {kind: vars(KINDS[kind]) for kind in self.by_kind},
        }

    def _plain_duplicate(self, duplicate: Duplicate) -> dict[str, Any]:
        images = [
            {"dataset": self.audited[place[0]].dataset.title, "image": str(self.at(place).entry.image)}
            for place in (duplicate.first, duplicate.second)
        ]
        return {
            "severity": duplicate.severity,
            "images": images,
            "distance": duplicate.distance,
            "correlation": round(duplicate.correlation, 4),
            "mirrored": duplicate.mirrored,
        }


def _is_hint(kind: Kind) -> bool:
    return kind.severity == "note" and bool(kind.remedy)


def groups_of(audited: Audited) -> dict[str, list[Examined]]:
    """Images by group, where there are at least two groups."""
    groups: dict[str, list[Examined]] = {}
    for one in audited.examined:
        groups.setdefault(one.entry.group, []).append(one)
    return dict(sorted(groups.items())) if len(groups) > 1 else {}


def _plain_dataset(audited: Audited) -> dict[str, Any]:
    dataset = audited.dataset
    groups = {
        name: summarise([one.measured for one in members if one.measured is not None])
        for name, members in groups_of(audited).items()
    }
    return {
        "name": dataset.name,
        "role": dataset.role,
        "layout": dataset.located.layout,
        "folders": [{"images": str(part.images), "masks": str(part.masks)} for part in dataset.located.parts],
        "images": len(audited.examined),
        "statistics": summarise(audited.measured),
        "groups": groups,
        "findings": [
            {"kind": one.kind, "severity": one.severity, "path": str(one.path), "detail": one.detail}
            for one in audited.findings
        ],
    }
