"""Ask Prometheus' own rule evaluation whether an alert fires after some scrapes of our metrics."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.support.controlplane import binaries
from tests.support.installation import ROOT

RULES = ROOT / "manifests" / "monitoring" / "rules.yaml"
INTERVAL_SECONDS = 15


@dataclass(frozen=True)
class Alerts:
    """The rules that we ship, and a folder to write tests of them into."""

    folder: Path

    def fires(self, alert: str, scrapes: Sequence[str], since: float) -> bool:
        """Return whether an alert fires at the last of some scrapes, which were 15 s apart.

        Args:
            alert: Its name.
            scrapes: What /metrics answered, oldest first.
            since: Time of the first, in seconds since the epoch.
        """
        rules = self.folder / "rules.yaml"
        rules.write_text(yaml.safe_dump(yaml.safe_load(RULES.read_text())["spec"]))
        return self._holds(alert, scrapes, since, 1) and not self._holds(alert, scrapes, since, 0)

    def _holds(self, alert: str, scrapes: Sequence[str], since: float, count: int) -> bool:
        firing = f'ALERTS{{alertname="{alert}", alertstate="firing"}}'
        at = f"{(len(scrapes) - 1) * INTERVAL_SECONDS}s"
        case = {
            "interval": f"{INTERVAL_SECONDS}s",
            "start_timestamp": int(since),
            "input_series": _series(scrapes),
            "promql_expr_test": [
                {
                    "expr": f"count({firing}) or vector(0)",
                    "eval_time": at,
                    "exp_samples": [{"labels": "{}", "value": count}],
                }
            ],
        }
        test = self.folder / "test.yaml"
        whole = {
            "rule_files": ["rules.yaml"],
            "evaluation_interval": f"{INTERVAL_SECONDS}s",
            "tests": [case],
        }
        test.write_text(json.dumps(whole))
        promtool = binaries.build(binaries.ALERT_MODULES)["promtool"]
        done = subprocess.run(
            [str(promtool), "test", "rules", str(test)], capture_output=True, text=True, check=False
        )
        # Anything but a comparison that failed is a broken test.
        assert done.returncode == 0 or "expr:" in done.stderr + done.stdout, done.stderr
        return done.returncode == 0


def _series(scrapes: Sequence[str]) -> list[dict[str, str]]:
    """Return every series of ours with its values; a scrape that lacks one leaves a hole."""
    found: dict[str, list[str]] = {}
    for number, text in enumerate(scrapes):
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if not sample.name.startswith("botplane_"):
                    continue
                labels = ", ".join(f'{k}="{v}"' for k, v in sorted(sample.labels.items()))
                values = found.setdefault(f"{sample.name}{{{labels}}}", ["_"] * len(scrapes))
                values[number] = str(sample.value)
    return [{"series": series, "values": " ".join(values)} for series, values in found.items()]
