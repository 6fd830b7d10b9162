"""Trait: a character trait as contrasting instructions, questions and a judging rubric."""

from __future__ import annotations

import hashlib
import html
import json
import re
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from persona_lens.checking import checked
from persona_lens.errors import TraitFormatError
from persona_lens.files import check_apart, encode_json, write_json, write_text
from persona_lens.hub import Card, fetch_file, push_file
from persona_lens.traits.authored import check_texts, check_unicode, normal
from persona_lens.traits.reading import read_json_object

_FORMAT = "persona-lens-trait"
_VERSION = 1
_HUB_FILE = "trait.json"
_PLACEHOLDERS = ("{question}", "{answer}")


@checked
@dataclass(frozen=True)
class InstructionPair:
    """Two system instructions that differ in the trait.

    Args:
        positive: Brings the trait out.
        negative: Suppresses it.
    """

    positive: str
    negative: str


@checked
@dataclass(frozen=True)
class Trait:
    """A character trait, ready for extraction and evaluation.

    Args:
        name: Lower-case word, used in file names: letters, digits, ``-`` and ``_``.
        description: One sentence.
        instruction_pairs: Contrasting system instructions.
        extraction_questions: Asked to find the direction.
        evaluation_questions: Asked to judge steering; disjoint from the extraction questions.
        rubric: Judging prompt with the places ``{question}`` and ``{answer}``.
        positive_adjective: Fills "You are a(n) ... assistant." before a positive instruction; empty leaves it out.
        negative_adjective: Likewise for negative instructions.
        origin: Which file the trait was read from, and how its questions were split; empty for one of your own. Says
            nothing about the trait, and is no part of its :attr:`fingerprint`.

    Raises:
        TraitFormatError: Names the field that is empty, repeated, overlapping or malformed.

    Reference:
        Persona Vectors (arXiv 2507.21509), section 2.1 and appendix A.
    """

    name: str
    description: str
    instruction_pairs: tuple[InstructionPair, ...]
    extraction_questions: tuple[str, ...]
    evaluation_questions: tuple[str, ...]
    rubric: str
    positive_adjective: str = ""
    negative_adjective: str = ""
    origin: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_-]*", self.name):
            rule = "be a lower-case word of letters, digits, '-' and '_'"
            raise TraitFormatError.of("name", rule, self.name)
        for key in ("description", "rubric", "positive_adjective", "negative_adjective", "origin"):
            check_unicode(key, [getattr(self, key)])
        for key in ("description", "rubric"):
            if not getattr(self, key).strip():
                raise TraitFormatError.of(key, "not be empty", getattr(self, key))
        missing = [place for place in _PLACEHOLDERS if place not in self.rubric]
        if missing:
            rule = f"contain {' and '.join(_PLACEHOLDERS)}"
            raise TraitFormatError.of("rubric", rule, f"a rubric without {missing}")
        instructions = [text for pair in self.instruction_pairs for text in (pair.positive, pair.negative)]
        check_texts("instruction_pairs", instructions)
        check_texts("extraction_questions", self.extraction_questions)
        check_texts("evaluation_questions", self.evaluation_questions)
        shared = {normal(q) for q in self.extraction_questions} & {normal(q) for q in self.evaluation_questions}
        if shared:
            rule = "share no question with `extraction_questions`"
            hint = "Nothing may be judged on what it was found with; reword or remove them."
            raise TraitFormatError.of("evaluation_questions", rule, sorted(shared), hint)

    @property
    def positive_system_prompts(self) -> tuple[str, ...]:
        """System prompts that bring the trait out."""
        return tuple(_system_prompt(self.positive_adjective, pair.positive) for pair in self.instruction_pairs)

    @property
    def negative_system_prompts(self) -> tuple[str, ...]:
        """System prompts that suppress the trait."""
        return tuple(_system_prompt(self.negative_adjective, pair.negative) for pair in self.instruction_pairs)

    def render_rubric(self, question: str, answer: str) -> str:
        """Return the judging prompt for a response.

        Both places are filled in one pass, so braces and placeholders inside question or answer stay as they are.

        Example:
            >>> trait = Trait("calm", "Calm.", (InstructionPair("Be calm.", "Fret."),), ("Q1?",), ("Q2?",),
            ...               "Q: {question} A: {answer}")
            >>> trait.render_rubric("why {answer}?", "{}")
            'Q: why {answer}? A: {}'
        """
        return fill_rubric(self.rubric, question, answer)

    @property
    def fingerprint(self) -> str:
        """A hash of all that the trait says: what a vector or a calibration was made from."""
        said = {key: value for key, value in self.to_dict().items() if key != "origin"}
        content = json.dumps(said, sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @classmethod
    def from_json(cls, path: str | Path) -> Trait:
        """Read a trait file that :meth:`to_json` wrote, or one of the same form.

        Raises:
            FileNotFoundError: No such file.
            TraitFormatError: Not JSON, not UTF-8, or a key is missing, unknown or of the wrong type.
        """
        return cls.from_dict(read_json_object(Path(path), TraitFormatError), where=str(path))

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], *, where: str = "`content`") -> Trait:
        """Read what :meth:`to_dict` returned, e.g. out of a results file.

        Args:
            content: Names to values, as in a trait file.
            where: What to call it in an error.

        Raises:
            TraitFormatError: A key is missing, unknown or of the wrong type.
        """
        known = {"format", "version", *cls.__dataclass_fields__}
        optional = {"format", "version", "positive_adjective", "negative_adjective", "origin"}
        missing, unknown = sorted(known - optional - content.keys()), sorted(content.keys() - known)
        if missing or unknown:
            if "questions" in content and "eval_prompt" in content:
                raise TraitFormatError(
                    f"{where} has the form of the paper's files. Read it with Trait.from_paper_json."
                )
            raise TraitFormatError(f"{where}: missing keys {missing}, unknown keys {unknown}. See Trait.to_json.")
        if content.get("format", _FORMAT) != _FORMAT:
            got = reprlib.repr(content["format"])
            raise TraitFormatError(f"{where}: `format` must be {_FORMAT!r}, or left out. Got {got}.")
        if content.get("version", _VERSION) != _VERSION:
            raise TraitFormatError(f"{where}: `version` must be {_VERSION}. Got {reprlib.repr(content['version'])}.")
        pairs = content["instruction_pairs"]
        if not isinstance(pairs, list):
            raise TraitFormatError(
                f"{where}: `instruction_pairs` must be a list of objects. Got {reprlib.repr(pairs)}."
            )
        return cls(
            name=_text(content, "name", where),
            description=_text(content, "description", where),
            instruction_pairs=_read_pairs(pairs, "instruction_pairs", "positive", "negative", where),
            extraction_questions=_texts(content, "extraction_questions", where),
            evaluation_questions=_texts(content, "evaluation_questions", where),
            rubric=_text(content, "rubric", where),
            positive_adjective=_text(content, "positive_adjective", where, default=""),
            negative_adjective=_text(content, "negative_adjective", where, default=""),
            origin=_text(content, "origin", where, default=""),
        )

    def to_json(self, path: str | Path) -> None:
        """Write the trait as UTF-8 JSON."""
        write_json(Path(path), self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Return the trait as JSON-able values."""
        values = asdict(self)
        lists = {key: list(value) for key, value in values.items() if isinstance(value, tuple)}
        if not self.origin:  # as files without one were always written
            del values["origin"]
        return {"format": _FORMAT, "version": _VERSION, **values, **lists}

    @classmethod
    def from_paper_json(
        cls,
        extraction_path: str | Path,
        evaluation_path: str | Path | None = None,
        *,
        name: str | None = None,
        description: str | None = None,
        positive_adjective: str = "",
        negative_adjective: str = "",
    ) -> Trait:
        """Read a trait in the form of the paper's code: ``instruction``, ``questions``, ``eval_prompt``.

        assistant-axis' 240 traits have the same form, with all 40 questions in one file. :attr:`origin` says which
        files were read and how the questions were split.

        Args:
            extraction_path: The file with instructions and extraction questions.
            evaluation_path: The file with the evaluation questions; None splits the first file's: its first half for
                extraction, the rest for evaluation.
            name: None takes the file's name.
            description: None makes a sentence of the name.
            positive_adjective: Fills "You are a(n) ... assistant.".
            negative_adjective: Likewise.

        Raises:
            TraitFormatError: A malformed file; the message names the key.
        """
        path = Path(extraction_path)
        content = read_json_object(path, TraitFormatError)
        _refuse_other_keys(content, str(path))
        pairs = content.get("instruction")
        if not isinstance(pairs, list):
            raise TraitFormatError(
                f"{path}: `instruction` must be a list of objects with 'pos' and 'neg'. Got {reprlib.repr(pairs)}."
            )
        questions = _texts(content, "questions", str(path))
        if evaluation_path is None:
            half = len(questions) // 2
            extraction, evaluation = questions[:half], questions[half:]
            origin = (
                f"{path.name}, in the form of the paper's code; of its {len(questions)} questions the first {half} are "
                f"for extraction, the last {len(questions) - half} for evaluation"
            )
        else:
            extraction = questions
            other = read_json_object(Path(evaluation_path), TraitFormatError)
            _refuse_other_keys(other, str(evaluation_path))
            evaluation = _texts(other, "questions", str(evaluation_path))
            origin = (
                f"in the form of the paper's code: {path.name} with {len(extraction)} questions for extraction, "
                f"{Path(evaluation_path).name} with {len(evaluation)} for evaluation"
            )
        name = name or re.sub(r"[^a-z0-9_-]", "-", path.stem.lower())
        return cls(
            name=name,
            description=description or f"The trait {name}.",
            instruction_pairs=_read_pairs(pairs, "instruction", "pos", "neg", str(path)),
            extraction_questions=extraction,
            evaluation_questions=evaluation,
            rubric=_text(content, "eval_prompt", str(path)),
            positive_adjective=positive_adjective,
            negative_adjective=negative_adjective,
            origin=origin,
        )

    def push_to_hub(self, repo_id: str, *, private: bool | None = None) -> str:
        """Share the trait on the Hugging Face hub, as ``trait.json`` with a card, in one commit.

        Args:
            repo_id: ``owner/name``; made if it is not there. A card that is there is replaced.
            private: Whether a repository that is made is closed to others; None leaves that to the hub.

        Returns:
            The commit's hash, for :meth:`from_hub`.

        Raises:
            InvalidArgumentError: No name that a repository can have.
            ApiError: The hub is out of reach, or refused. The token comes from HF_TOKEN or ``hf auth login``.

        Example:
            >>> import persona_lens as pl
            >>> pl.load_trait("evil").push_to_hub("me/evil-trait")  # doctest: +SKIP
        """
        rows = {
            "trait": self.name,
            "instruction pairs": len(self.instruction_pairs),
            "questions": f"{len(self.extraction_questions)} extraction, {len(self.evaluation_questions)} evaluation",
            "fingerprint": self.fingerprint,
            "origin": self.origin or "not said",
        }
        card = Card(f"Trait: {self.name}", self.description, rows, "Trait", ("persona-vectors",))
        return push_file(repo_id, _HUB_FILE, encode_json(self.to_dict()), card, private=private)

    @classmethod
    def from_hub(cls, repo_id: str, *, revision: str | None = None) -> Trait:
        """Read a trait that :meth:`push_to_hub` shared.

        Args:
            repo_id: ``owner/name``.
            revision: A branch, a tag or a commit's hash; None takes the newest.

        Raises:
            InvalidArgumentError: No name that a repository can have.
            ApiError: No such repository, revision or file, or the hub is out of reach.
            TraitFormatError: A file that is damaged, or of another kind.

        Example:
            >>> import persona_lens as pl
            >>> pl.Trait.from_hub("me/evil-trait")  # doctest: +SKIP
        """
        return cls.from_json(fetch_file(repo_id, _HUB_FILE, revision))

    def to_paper_json(self, extraction_path: str | Path, evaluation_path: str | Path) -> None:
        """Write the two files that the paper's code reads; name, description and adjectives have no place there.

        Args:
            extraction_path: Gets the instructions and the extraction questions.
            evaluation_path: Gets the instructions and the evaluation questions.

        Raises:
            InvalidArgumentError: Both paths lead to one file.
        """
        check_apart({"extraction_path": extraction_path, "evaluation_path": evaluation_path})
        instruction = [{"pos": pair.positive, "neg": pair.negative} for pair in self.instruction_pairs]
        for path, questions in (
            (extraction_path, self.extraction_questions),
            (evaluation_path, self.evaluation_questions),
        ):
            content = {"instruction": instruction, "questions": list(questions), "eval_prompt": self.rubric}
            write_text(path, json.dumps(content, indent=4, ensure_ascii=False) + "\n")

    def __repr__(self) -> str:
        return (
            f"Trait({self.name!r}: {self.description} {len(self.instruction_pairs)} instruction pairs, "
            f"{len(self.extraction_questions)} + {len(self.evaluation_questions)} questions)"
        )

    def _repr_html_(self) -> str:
        rows = {
            "description": self.description,
            "positive": self.positive_system_prompts[0],
            "negative": self.negative_system_prompts[0],
            "first question": self.extraction_questions[0],
            "questions": f"{len(self.extraction_questions)} extraction + {len(self.evaluation_questions)} evaluation",
        }
        cells = "".join(f"<tr><th>{key}</th><td>{html.escape(value)}</td></tr>" for key, value in rows.items())
        return f"<table><caption>Trait {html.escape(self.name)}</caption>{cells}</table>"


def fill_rubric(rubric: str, question: str, answer: str) -> str:
    """Put question and answer in their places, in one pass, so that what they contain is never filled in again."""
    values = {"{question}": question, "{answer}": answer}
    return re.sub(r"\{question\}|\{answer\}", lambda match: values[match[0]], rubric)


def _system_prompt(adjective: str, instruction: str) -> str:
    if not adjective:
        return instruction
    return f"You are {_article(adjective)} {adjective} assistant. {instruction}"


def _article(word: str) -> str:
    """Return the article that a word takes by its sound: an honest, an evil, a useful, a kind."""
    word = word.lower()
    sounds_like_a_vowel = word.startswith(("hon", "hour", "heir")) or (
        word[0] in "aeiou" and not word.startswith(("uni", "use", "eu"))
    )
    return "an" if sounds_like_a_vowel else "a"


def _refuse_other_keys(content: Mapping[str, Any], where: str) -> None:
    """Refuse keys that a paper's file does not have: what is not read would be lost on the way out."""
    unknown = sorted(content.keys() - {"instruction", "questions", "eval_prompt"})
    if unknown:
        raise TraitFormatError(f"{where}: unknown keys {unknown}. A file of the paper's form has none; remove them.")


def _text(content: Mapping[str, Any], key: str, where: str, default: str | None = None) -> str:
    value = content.get(key, default)
    if not isinstance(value, str):
        raise TraitFormatError(f"{where}: `{key}` must be a text. Got {reprlib.repr(value)}.")
    return value


def _texts(content: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = content.get(key)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TraitFormatError(f"{where}: `{key}` must be a list of texts. Got {reprlib.repr(value)}.")
    return tuple(value)


def _read_pairs(pairs: list[Any], key: str, positive: str, negative: str, where: str) -> tuple[InstructionPair, ...]:
    for index, pair in enumerate(pairs):
        if not isinstance(pair, dict) or not all(isinstance(pair.get(side), str) for side in (positive, negative)):
            got = reprlib.repr(pair)
            raise TraitFormatError(
                f"{where}: `{key}[{index}]` must have the texts {positive!r} and {negative!r}. Got {got}."
            )
    return tuple(InstructionPair(pair[positive], pair[negative]) for pair in pairs)
