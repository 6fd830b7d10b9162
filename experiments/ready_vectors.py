"""Write the vectors that come with the package: of each trait with evidence, the source that this found better.

    python experiments/ready_vectors.py      # of each trait that figures/ has a steering_evidence_TRAIT.json of

The better source is the one whose steered responses the less convinced of the two measured judges tells more surely
from unsteered ones. Where steering away was measured by itself (hallucination), its setting is kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from results.steering_away import AWAY, SteeringAway
from results.steering_evidence import SteeringEvidence

import persona_lens as pl
from persona_lens.models import HookedModel
from persona_lens.reproduction.arguments import CommonArguments, read_traits
from persona_lens.reproduction.bench import extract_or_keep_all
from persona_lens.reproduction.comparison import Comparison, Setting
from persona_lens.reproduction.entrance import enter
from persona_lens.reproduction.judges import prepare_judges
from persona_lens.traits import list_written_traits, load_written_examples

FOLDER = Path("persona_lens/data/vectors")


@dataclass(frozen=True)
class Found:
    """Where a trait's evidence is, and under which condition steering was tried at which setting."""

    evidence: Comparison
    condition: str
    setting: Setting


def main(arguments: CommonArguments) -> None:
    """Make each trait's vector and write it with its setting and what judges read."""
    names = [name for name in list_written_traits() if evidence_path(name, arguments.out).exists()]
    if not names:
        raise SystemExit(f"{arguments.out} holds no steering_evidence_TRAIT.json. Run steering_evidence.py first.")
    found = {name: choose(name, arguments.out) for name in names}  # before any model runs
    model = arguments.load_model()
    FOLDER.mkdir(exist_ok=True)
    for trait, one in found.items():
        vector = make_vector(model, one, arguments)
        only = {"response_mean": vector.by_position["response_mean"]}
        cosine = {"response_mean": vector.split_half_cosine["response_mean"]}
        provenance = {"source": "sampled responses"} | vector.provenance | describe(one)
        vector = replace(vector, by_position=only, split_half_cosine=cosine, provenance=provenance)
        vector.save(FOLDER / f"{trait}.safetensors")
        print(vector, provenance["setting"])


def evidence_path(trait: str, folder: Path) -> Path:
    """Return where a trait's evidence is."""
    return folder / f"steering_evidence_{trait}.json"


def choose(trait: str, folder: Path) -> Found:
    """Return the better source's setting, or that of steering away, where this was measured by itself."""
    away = folder / f"steering_away_{trait}.json"
    if away.exists():
        measured = SteeringAway.load(away)
        return Found(measured, AWAY, measured.setting)
    evidence = SteeringEvidence.load(evidence_path(trait, folder))
    settings = {f"{one.source} vector": one for one in evidence.settings}

    def least(condition: str) -> float:
        return min(evidence.auroc(judge, condition, "unsteered").estimate for judge in measured_judges(evidence))

    best = max(settings, key=least)
    return Found(evidence, best, settings[best])


def measured_judges(evidence: Comparison) -> list[str]:
    """Return the names of the judges that are at least partly valid for the trait."""
    return [judge for judge, verdict in evidence.verdicts.items() if verdict in ("valid", "partly valid")]


def make_vector(model: HookedModel, found: Found, arguments: CommonArguments) -> pl.PersonaVector:
    """Read written answers, or extract from the model's own responses as the evidence did."""
    trait, config = found.evidence.trait, found.evidence.config
    if found.setting.source == "written":
        return pl.read_persona_vector(model, trait, load_written_examples(trait, "training"))
    profile = config["profile"]
    sampling = pl.Sampling(profile["max_new_tokens"], profile["temperature"], seed=config["seed"])
    (bundled,) = read_traits([trait], profile["n_pairs"], profile["n_questions"])
    run = arguments.share(model)
    judges = prepare_judges(model, bundled, sampling, run)
    several = replace(sampling, rollouts=profile["extraction_rollouts"])
    own = run.part({"work": "ready vector", "trait": bundled.to_dict(), "sampling": several.to_json()})
    return extract_or_keep_all(model, bundled, judges.reader, several, own)


def describe(found: Found) -> dict[str, object]:
    """Return the setting, coherence and what judges read of it, for the vector's provenance."""
    setting, evidence = found.setting, found.evidence
    aurocs = {judge: evidence.auroc(judge, found.condition, "unsteered") for judge in measured_judges(evidence)}
    return {
        "setting": {
            "layer": setting.layer,
            "coefficient": setting.coefficient,
            "coherence": evidence.coherence(found.condition),
            "coherence unsteered": evidence.coherence("unsteered"),
        },
        "auroc": {judge: [one.estimate, one.low, one.high] for judge, one in aurocs.items()},
    }


if __name__ == "__main__":
    enter(main, CommonArguments, __doc__)
