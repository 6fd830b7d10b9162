"""Valid arguments for every public callable, made of its annotations: what hostile ones are put in the place of."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import numpy as np
import torch
from jaxtyping import AbstractArray
from safetensors.torch import save_file

import persona_lens as pl
from persona_lens.checking import resolve_hints
from persona_lens.models.hooked_model import HookedModel
from tests.small_trait import LengthJudge, tiny_trait

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]
TO_BE_ANSWERED = {("stream_tokens", "conversation"), ("encode_prompt", "messages")}
# Parameters with a default that is refused as it is, as one of two must be given.
ALSO_GIVEN = {"layer", "ceiling", "above", "encoder", "folds", "data"}
# Sizes of the dimensions that have a name; all others are 4.
SIZES = {"layer": 3, "d_model": 48, "batch": 2, "pos": 4, "row": 2, "trait": 1}


@functools.cache  # asked for before each of 30,000 calls
def list_needed(public: Callable[..., Any]) -> list[tuple[str, Any]]:
    """Return each parameter that must be given, with its type."""
    hints = resolve_hints(public)
    return [
        (one.name, hints.get(one.name, Any))
        for one in inspect.signature(public).parameters.values()
        if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
        and one.name not in ("self", "cls")
        and (one.default is one.empty or one.name in ALSO_GIVEN)
    ]


class IdentifiedLengthJudge(LengthJudge):
    """A judge that says which it is."""

    identity = "length"


class LetterEncoder:
    """A text's vector: its length, four times."""

    name = identity = "letters"

    def encode(self, texts, **options):
        return np.array([[float(len(text))] * 4 for text in texts])


class ValidArguments:
    """Makes a valid argument for a parameter.

    Args:
        model: A tiny model.
        model_folder: The folder that it was loaded from.
        folder: Where files may be written.
    """

    def __init__(self, model: Any, model_folder: str, folder: Path) -> None:
        self.model, self.model_folder, self.folder = model, model_folder, folder
        self.n_paths = 0
        info = pl.describe_model(model)
        directions = torch.randn(3, 48, generator=torch.Generator().manual_seed(0))
        by_position = dict.fromkeys(("response_mean", "prompt_mean", "last_prompt"), directions)
        found = {"trait": tiny_trait().fingerprint, "judge": "none", "seed": 0, "rollouts": 1, "max_new_tokens": 4}
        tried = {"setting": {"layer": 1, "coefficient": 1.0}}
        provenance = found | tried | {"temperature": 1.0, "top_p": 1.0}
        self.vector = pl.PersonaVector("loud", info, by_position, provenance=provenance)
        self.data = folder / "rows.jsonl"
        self.data.write_text(
            '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]}\n' * 4
        )
        self.screening = pl.screen(
            model, [{"messages": CHAT}] * 4, {"loud": self.vector}, folder / "screening", layers={"loud": 1},
            settings=pl.screening.ScreenSettings(max_response_tokens=4),
        )  # fmt: skip
        self.gradient = pl.screening.read_gradient(model, [{"messages": CHAT}])
        self.adapter = folder / "adapter"
        self.adapter.mkdir()
        (self.adapter / "adapter_config.json").write_text(
            '{"peft_type": "LORA", "r": 1, "lora_alpha": 1, "bias": "none"}'
        )
        ones = {"loud.lora_A.weight": torch.ones(1, 4), "loud.lora_B.weight": torch.ones(4, 1)}
        save_file(ones, self.adapter / "adapter_model.safetensors")
        questions = tuple(tiny_trait().evaluation_questions)
        self.by_name: dict[str, Callable[[Any], Any]] = {
            "tokenizer": lambda hint: model.tokenizer,
            "messages": lambda hint: list(CHAT),
            "conversation": lambda hint: list(CHAT),
            "conversations": lambda hint: self._hold() if hint is pl.evaluation.Conversations
            else [list(CHAT[:1])] if "Message" in str(hint) else [pl.models.TokenSpans((5, 6, 7), 1, 3)],
            "pieces": lambda hint: [list],
            "data": lambda hint: pl.vectors.QualityData() if "QualityData" in str(hint) else str(self.data),
            "domain": lambda hint: "arithmetic",
            "questions": lambda hint: {"loud": questions} if "Mapping" in str(hint)
            else 2 if hint == int | None else (0, 1, 2, 3) if hint == tuple[int, ...] else questions,
            "folds": lambda hint: 2 if hint is int else [0, 1, 0, 1],
            "heads": lambda hint: ((0, 0), (0, 1), (1, 0), (2, 3)),
            "prompt": lambda hint: (5, 6, 7),
            "tokens": lambda hint: (5, 6, 7) if hint == tuple[int, ...] else self.make("", hint),
            "response_start": lambda hint: 1,
            "response_end": lambda hint: 3,
            "trait": lambda hint: tiny_trait() if hint is pl.Trait else "evil",
            "examples": lambda hint: pl.traits.load_written_examples("evil", "training")[:12]
            if "WrittenExample" in str(hint) else ("x",) * 4 if hint == tuple[str, ...]
            else () if "Message" in str(hint) else (("loud", "Hi", "Yes"),),
            "rubric": lambda hint: tiny_trait().rubric,
            "vectors": lambda hint: make_array(hint) if isinstance(hint, type) and issubclass(hint, AbstractArray)
            else (self.make("", pl.space.Placed),) if "Placed" in str(hint)
            else {"loud": self.vector} if "Mapping" in str(hint) else [self.vector],
            "layers": lambda hint: {"loud": 1} if "Mapping" in str(hint) or "dict" in str(hint)
            else (0, 1, 2) if hint == tuple[int, ...] else [1],
            "thresholds": lambda hint: make_array(hint) if isinstance(hint, type) and issubclass(hint, AbstractArray)
            else {"loud": 1.0},
            "base_url": lambda hint: "http://127.0.0.1:9",
            "name": lambda hint: "evil",
            "kind": lambda hint: "cities" if hint is str
            else pl.statistics.Interval if "type" in str(hint) else self.make("", hint),
            "statements": lambda hint: pl.traits.load_statements("cities")[:8],
            "texts": lambda hint: [(5, 6, 7)] if "int" in str(hint) else self.make("", hint),
            "compute": lambda hint: lambda: self.make("", pl.statistics.Interval),
            "identity": lambda hint: "length",
            "judge": lambda hint: "length" if hint is str else self.make("", hint),
            "description": lambda hint: "Shouts at everybody, always.",
            "ceiling": lambda hint: 0.5,
            "above": lambda hint: 0.5,
            "out": lambda hint: self.make_path(),
            "path": lambda hint: self.make_path(),
            "kept": lambda hint: self.make_path() if Path in get_args(hint) else 1,
            "held": lambda hint: self.make_path() if Path in get_args(hint) else {"loud": 1},
            "config": lambda hint: {"a": 1},
            "traits": lambda hint: ("loud",) if hint == tuple[str, ...] else self.make("", hint),
            "judges": lambda hint: {"loud": [IdentifiedLengthJudge()]} if "Mapping" in str(hint)
            else [IdentifiedLengthJudge()] if "Sequence" in str(hint)
            else ("length",) * 4 if hint == tuple[str, ...] else None,
            "instruction_pairs": lambda hint: tiny_trait().instruction_pairs,
            "extraction_questions": lambda hint: tiny_trait().extraction_questions,
            "evaluation_questions": lambda hint: tiny_trait().evaluation_questions,
            "by_position": lambda hint: dict(self.vector.by_position),
            "groups": lambda hint: ("a", "b", "c", "d"),
            "positive_groups": lambda hint: ("a", "b", "c", "d"),
            "negative_groups": lambda hint: ("a", "b", "c", "d"),
            "n_layers": lambda hint: 3,
            "d_model": lambda hint: 48,
            "dtype": lambda hint: "float32",
            "device": lambda hint: "cpu",
            "backend": lambda hint: None if type(None) in get_args(hint) else "hooked",
            "position": lambda hint: "response_mean",
            "by_layer": lambda hint: {1: torch.ones(48)},
            "repo_id": lambda hint: "me/loud",
            "absent": lambda hint: (),
            "quantiles": lambda hint: (0.5, 0.9, 0.95, 0.99),
            "ordinary": lambda hint: (0.0, 1.0, 2.0, 3.0) if hint == tuple[float, ...] else self.make("", hint),
            "high": lambda hint: 2.0,
            "low": lambda hint: 0.25,
            "question": lambda hint: "Why?",
            "role": lambda hint: "pirate",
            "answers": self._make_answers,
            "system_prompts": lambda hint: ("Be loud.", "Shout."),
            "roles": lambda hint: ("assistant", "cat", "owl", "sea") if hint == tuple[str, ...]
            else [pl.traits.load_role(name) for name in ("assistant", "cat")] if "Role]" in str(hint)
            else self.make("", hint),
            "encoder": lambda hint: "letters" if hint is str else make_array(hint)
            if isinstance(hint, type) and issubclass(hint, AbstractArray) else LetterEncoder(),
            "prompt_length": lambda hint: None,
            "layer": lambda hint: 1,
            "model": self._make_model,
            "is_padding": lambda hint: None,
            "stop_reason": lambda hint: "stop",
            "choices": lambda hint: ("yes", "no"),
            "units": lambda hint: torch.randn(3, 1, 48),
            "max_rows": lambda hint: 4,
            "share": lambda hint: 0.5,
            "shares": lambda hint: (0.0, 0.25, 0.5, 1.0) if "float" in str(hint) else self.make("", hint),
            "adapter": lambda hint: self.adapter if "Path" in str(hint) else self.make("", hint),
            "control": lambda hint: self.adapter if "Path" in str(hint) else self.make("", hint),
            "up": lambda hint: {"loud": torch.ones(4, 1)} if "Tensor" in str(hint) else self.make("", hint),
            "down": lambda hint: {"loud": torch.ones(1, 4)} if "Tensor" in str(hint) else self.make("", hint),
            "along": lambda hint: "loud",
            "reference": lambda hint: "loud" if hint is str else self.make("", hint),
            "references": lambda hint: ("loud",) if hint == tuple[str, ...] else {"loud": self.gradient},
            "variants": lambda hint: (self.make("", pl.live.ReadVariant),),
            "reader": lambda hint: "probe" if hint is str
            else hint.of(model, {"loud": self.vector}, None, 1, None, pl.Sampling(), None),
            "null_layers": lambda hint: (0, 1, 2, 3),
            "monitor": lambda hint: self._make_monitor(),
            "wording": lambda hint: pl.monitoring.InWords(),
            "source": lambda hint: pl.monitoring.OwnAnswer() if hint is pl.monitoring.ReadingSource else str(self.data),
            "read": lambda hint: self.make("", hint) if isinstance(hint, type) else lambda monitor: [],
        }  # fmt: skip

    @functools.cached_property
    def signal(self) -> pl.finetuning.SignalReading:
        """How well a model reads what is noise, compared with itself."""
        read = self.make("", pl.finetuning.SignalActivations)
        return pl.finetuning.measure_signal(read, self.vector, read, n_folds=2)

    def _hold(self) -> Any:
        """Return conversations of one turn with two users."""
        scripts = tuple(pl.traits.UserScript(kind, ("Hi",), "tea") for kind in ("neutral", "curt"))
        return pl.evaluation.Conversations(
            self.vector.model, ("plain",), scripts, (((("Yes.",),),) * 2,), torch.ones(1, 2, 1, 1).long(),
            ((("",),) * 2,),
        )  # fmt: skip

    def _make_monitor(self) -> Any:
        """Return a monitor that knows how ordinary answers read."""
        ordinary = pl.monitoring.OrdinaryResponses((0.0, 1.0), (0.0, 1.0), 8, 64, 20, means=(0.0, 1.0))
        loud = pl.monitoring.TraitMonitor(
            "loud", 1, "response_mean", self.vector.unit(1), (0.0, 1.0), (0.9,), responses=ordinary
        )
        return pl.PersonaMonitor(self.vector.model, (loud,))

    def _reflect(self) -> Any:
        """Return conversations of two turns with two users, under one reflection."""
        scripts = tuple(pl.traits.UserScript(kind, ("Hi", "Why?")) for kind in ("neutral", "curt"))
        said, read = (((("Yes.", "So."),),) * 2,), torch.rand(1, 1, 2, 1, 2)
        n_tokens, ends = torch.ones(1, 2, 1, 2).long(), ((("",),) * 2,)
        return pl.monitoring.ReflectedConversations(
            self.vector.model, ("loud",), ("words",), scripts, said, said, n_tokens, read, read, read, ends
        )

    def _make_model(self, hint: Any) -> Any:
        if hint is pl.models.ModelInfo:
            return self.vector.model
        if hint is Any:
            return LetterEncoder()
        return self.model_folder if str in get_args(hint) or hint is str else self.model

    def _make_answers(self, hint: Any) -> Any:
        """Return answers in which the assistant lies apart from seven roles; pairs of answers at two positions."""
        if "ActivationPairs" in str(hint):
            return dict.fromkeys(("response_mean", "last_response"), self.make("", pl.vectors.ActivationPairs))
        if hint is not pl.space.RoleAnswers:
            return self.make("", hint)
        roles = ("assistant", *"abcdefg")
        means = torch.randn(8, 4, 3, 48, generator=torch.Generator().manual_seed(0))
        means[0] += 9
        texts = tuple(tuple((f"{role} {q}",) for q in range(4)) for role in roles)
        kinds = ("assistant", *("human",) * 7)
        return hint(self.vector.model, roles, kinds, ("Who?", "What?", "Why?", "When?"), means, texts, ((0,) * 4,) * 8)

    def make_path(self) -> Path:
        """Return a path at which nothing is."""
        self.n_paths += 1
        return self.folder / f"path {self.n_paths}"

    def of(self, public: Callable[..., Any]) -> dict[str, Any]:
        """Return valid arguments for all parameters that must be given."""
        return {
            name: self.make(name, hint) if (public.__name__, name) not in TO_BE_ANSWERED else CHAT[:1]
            for name, hint in list_needed(public)
        }

    def make(self, name: str, hint: Any) -> Any:
        """Return a valid value of a type."""
        if name in self.by_name:
            return self.by_name[name](hint)
        origin, inner = get_origin(hint), get_args(hint)
        if origin in (Union, types.UnionType):
            return None if type(None) in inner else self.make(name, inner[0])
        if origin is Literal:
            return inner[0]
        simple = {int: 1, float: 0.5, str: "x", bool: True, Any: "x", object: "x", Hashable: "x"}
        if hint in simple:
            return simple[hint]
        if hint in (Path, str | Path):
            return self.make_path()
        if isinstance(hint, type) and issubclass(hint, AbstractArray):
            return make_array(hint)
        if hint is HookedModel:
            return self.model
        if hint is pl.judges.LikelihoodJudge:
            return pl.judges.LikelihoodJudge(
                self.model, tiny_trait(), 1, self.make("", pl.judges.LikelihoodCalibration)
            )
        if hint in (pl.judges.Judge, pl.judges.IdentifiedJudge):
            return IdentifiedLengthJudge()
        if hint is pl.vectors.Estimator:
            return pl.vectors.MeanDifference()
        if hint is pl.tensors.Operation:
            return pl.tensors.Add(torch.ones(48), 1.0)
        if hint is pl.judges.TextEncoder:
            return LetterEncoder()
        if hint is pl.vectors.OrdinaryProjections:
            loud = self.vector
            return hint(loud.trait, loud.model, loud.digest, torch.randn(3, 4), 2, 0)
        if hint is pl.PersonaVector:
            return self.vector
        if hint is pl.monitoring.ReflectedConversations:
            return self._reflect()
        if hint is pl.vectors.ActivationPairs:
            positive, negative = torch.randn(2, 4, 3, 48, generator=torch.Generator().manual_seed(0))
            return pl.vectors.ActivationPairs("loud", self.vector.model, positive, negative, (0, 1, 2, 3))
        if hint is pl.finetuning.SignalReading:
            return self.signal
        if hint is pl.screening.Screening:
            return self.screening
        if hint is pl.screening.MeanGradient:
            return self.gradient
        if typing.is_typeddict(hint):
            return CHAT[0]
        if origin is tuple and inner[-1:] == (...,):
            n = 4
            return tuple(self.make("", inner[0]) for _ in range(n))
        if origin is tuple:
            return tuple(self.make("", one) for one in inner)
        if isinstance(origin, type) and issubclass(origin, Mapping):
            return {"loud": self.make("", inner[1])}
        if origin is Callable:
            return lambda *given, **options: None
        if isinstance(origin, type) and issubclass(origin, Iterable):
            made = [self.make("", inner[0]) for _ in range(4)]
            return frozenset(made) if origin is frozenset else made
        if hint is torch.Tensor:
            return torch.ones(2)
        if dataclasses.is_dataclass(hint) or inspect.isclass(hint):
            return hint(**self.of(hint))
        raise NotImplementedError(f"{name}: {hint}")


def make_array(hint: Any) -> Any:
    """Return an array of the annotation's shape and type."""
    shape = [SIZES.get(getattr(dim, "name", ""), 4) for dim in hint.dims if "Variadic" not in type(dim).__name__]
    if issubclass(hint.array_type, np.ndarray):
        return np.ones(shape)
    if "bool" in hint.dtypes[0]:
        return torch.ones(shape, dtype=torch.bool)
    if any(kind.startswith("float") for kind in hint.dtypes):
        return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).sigmoid()
    return torch.full(shape, 5)
