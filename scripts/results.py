"""Test counts out of the JUnit reports that ctest and pytest write."""

from __future__ import annotations

import collections
import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

# What a skipped gtest prints: the place, the reason, then its closing line.
GTEST_SKIP = re.compile(r": Skipped\n(.*?)\n*\[  SKIPPED \]", re.DOTALL)


@dataclass
class Counts:
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    reasons: collections.Counter[str] = field(default_factory=collections.Counter)
    failures: dict[str, str] = field(default_factory=dict)  # what the failed ones said

    @property
    def total(self) -> int:
        return self.passed + self.failed + self.skipped

    def __iadd__(self, other: Counts) -> Self:
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped
        self.reasons += other.reasons
        self.failures |= other.failures
        return self

    def text(self) -> str:
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped" if self.total else ""


def _why(case: ET.Element, skipped: ET.Element | None) -> str:
    output = case.findtext("system-out") or ""
    found = GTEST_SKIP.search(output)
    if found:
        reason = found.group(1)
    elif skipped is None:
        reason = output  # ctest: "Disabled"
    else:
        reason = skipped.get("message") or "no reason given"
    return " ".join(reason.split())


def _said(case: ET.Element) -> str:
    """pytest leaves the traceback in the failure or error, ctest the program's output next to it."""
    texts = (found.text or found.get("message") or "" for tag in ("failure", "error") for found in case.findall(tag))
    return "\n".join(filter(None, (*texts, case.findtext("system-out"))))


def read_junit(path: Path) -> Counts:
    counts = Counts()
    for case in ET.parse(path).getroot().iter("testcase"):
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None or case.get("status") == "fail":
            counts.failed += 1
            names = dict.fromkeys((case.get("classname"), case.get("name")))  # ctest: both are the same
            counts.failures["::".join(filter(None, names))] = _said(case)
        elif skipped is not None or case.get("status") in {"notrun", "disabled"}:
            counts.skipped += 1
            counts.reasons[_why(case, skipped)] += 1
        else:
            counts.passed += 1
    return counts
