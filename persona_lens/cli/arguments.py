"""What each command understands. Nothing here imports a model's libraries, so that help and a slip cost no seconds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

Source = Literal["written", "sampled"]
Format = Literal["persona-lens", "gguf", "paper", "assistant-axis", "steering-vectors", "trait-interp"]
Backend = Literal["hooked", "bridge"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Machine = Literal["here", "t4", "l4", "rtx-4090", "a100-40gb", "a100-80gb", "h100", "h200"]
Kind = Literal["reading", "sentences", "likelihood", "endpoint"]

DEFAULT_MODEL = "smollm2-135m-instruct"
"""The embedded model; said here too, since its own module imports what reads it."""

DEFAULT_LIMITS = {"max_row_bytes": 1 << 22, "max_depth": 100, "max_ratio": 200}
"""Those of :class:`persona_lens.conversations.ReadLimits`, likewise."""

TemplateOption = Annotated[
    str | None,
    tyro.conf.arg(
        metavar="JSON",
        help="What the chat template reads besides the messages, as one JSON object: '{\"enable_thinking\": false}'.",
    ),
]
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


@dataclass(frozen=True)
class Demo:
    """Steer the embedded model by each vector that comes with the package, beside the model as it is.

    Prints both answers, each token coloured by its projection on the trait's vector, and writes a page with the same. A
    model of 135 million parameters is no great writer: what to look for is the change, not the prose.

    Try:

    persona-lens demo

    persona-lens demo --trait humorous --trait evil --seed 1
    """

    trait: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Trait with a ready vector, may be repeated; all if left out."""
    out: Path = Path("persona-lens-demo.html")
    """The page."""
    seed: int = 0
    """Another seed draws other answers."""
    json: Flag = False
    """Print one JSON object and write no page."""


@dataclass(frozen=True)
class Traits:
    """List the traits that come with the package.

    A trait with written answers has judges that can be measured before they are believed; one with a ready vector can
    be steered by at once (`persona-lens steer`). A trait of your own is a JSON file with the same keys as these.

    Try:

    persona-lens traits

    persona-lens traits --json
    """

    json: Flag = False
    """Print one JSON object."""


@dataclass(frozen=True)
class Steer:
    """Ask a question twice: the model as it is, and steered along a trait's vector.

    With --trait the vector is the one that comes with the package for the embedded model, at the layer and coefficient
    at which it was tried. For another model extract one first: persona-lens extract.

    Try:

    persona-lens steer "I failed my exam." --trait empathy

    persona-lens steer "I failed my exam." --trait empathy --coefficient -1.5

    persona-lens steer "How was your day?" --vector evil.safetensors --model Qwen/Qwen2.5-7B-Instruct --layer 19
    --coefficient 2
    """

    question: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="QUESTION")]
    """What is asked."""
    trait: str | None = None
    """A trait with a ready vector: see `persona-lens traits`."""
    vector: Path | None = None
    """Or a file that `persona-lens extract` wrote."""
    model: str = DEFAULT_MODEL
    """Bundled model, Hugging Face name, folder or GGUF file."""
    template_arguments: TemplateOption = None
    layer: int | None = None
    """Zero-based block index; the one that was tried if left out."""
    coefficient: float | None = None
    """How many of the vector's lengths are added; below zero steers away."""
    system: str | None = None
    """System prompt."""
    max_new_tokens: int = 96
    """Most tokens of an answer."""
    seed: int = 0
    """Another seed draws other answers."""
    json: Flag = False
    """Print one JSON object."""


@dataclass(frozen=True)
class Chat:
    r"""Talk with a model whose answers are watched token by token, and steer it as you go.

    Each token is coloured by its projection on a trait's vector as it comes; after an answer stands above how many
    ordinary answers of this model the traits are, and an alarm where one is above what ordinary answers reach. In the
    chat /help says what can be typed: /evil 1.5 steers, /drift draws the projections over the turns, /save chat.json
    keeps the chat with its readings. Ctrl-C stops an answer, Ctrl-D ends. Through a pipe each line is a question or
    command.

    Try:

    persona-lens chat --trait evil --trait sycophancy

    persona-lens chat --monitor monitor.json

    printf 'How are you?\n/evil 1.5\nHow are you?\n/drift\n' | persona-lens chat --trait evil

    persona-lens chat --model Qwen/Qwen2.5-7B-Instruct --vector evil.safetensors --layer 19
    """

    trait: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A trait with a ready vector, may be repeated; all of them if neither this nor --vector is given."""
    vector: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """A file that `persona-lens extract` or `sweep` wrote, may be repeated."""
    model: str = DEFAULT_MODEL
    """Bundled model, Hugging Face name, folder or GGUF file."""
    template_arguments: TemplateOption = None
    layer: int | None = None
    """Zero-based block index at which all traits are read and steered; those that were tried if left out."""
    monitor: Path | None = None
    """Calibrated monitor: read if it is there, else written. Without it what is ordinary is measured each time."""
    system: str | None = None
    """System prompt."""
    max_new_tokens: int = 128
    """Most tokens of an answer."""
    seed: int = 0
    """Another seed draws other answers."""
    json: Flag = False
    """Through a pipe: print the chat with its readings as one JSON object."""


@dataclass(frozen=True)
class App:
    """Chat with a model on a page of this machine: sliders of traits, and each token coloured as it comes.

    Without --trait and --vector the page has the vectors that come with the package for the embedded model. Nothing
    leaves the machine, and no network is needed. It takes the extra: pip install 'persona-lens[app]'.

    Try:

    persona-lens app

    persona-lens app --trait evil --trait empathy --monitor monitor.json

    persona-lens app --model Qwen/Qwen2.5-7B-Instruct --vector evil.safetensors --layer 19
    """

    trait: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A trait with a ready vector, may be repeated: see `persona-lens traits`."""
    vector: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """A file that `persona-lens extract` or `sweep` wrote, may be repeated."""
    model: str = DEFAULT_MODEL
    """Bundled model, Hugging Face name, folder or GGUF file."""
    template_arguments: TemplateOption = None
    layer: int | None = None
    """Zero-based block index at which all vectors act; those that were tried if left out."""
    monitor: Path | None = None
    """A file that `PersonaMonitor.save` wrote: its thresholds are shown by turn."""
    ordinary: Flag = False
    """Measure first what is ordinary for each trait, and colour tokens by their distance from it."""
    max_new_tokens: int = 128
    """Most tokens of an answer; the page can change it."""
    host: str = "127.0.0.1"
    """The address to listen on. Any other than this lets others reach the page, without a password."""
    port: int = 8600
    """Where to listen; 0 takes one that is free."""


@dataclass(frozen=True)
class Extract:
    """Find a trait's direction at every layer of a model and write it to a file.

    From written answers where there are some (seconds), else from the model's own responses under contrasting system
    prompts, as in the paper (minutes). Killed while it samples, the same command goes on where it was.

    Try:

    persona-lens extract --trait evil --out evil.safetensors

    persona-lens extract --trait evil --source sampled --out evil.safetensors --model Qwen/Qwen2.5-7B-Instruct

    persona-lens extract --trait my_trait.json --out my_trait.safetensors

    persona-lens extract --trait my_answers.jsonl --out my_trait.safetensors
    """

    trait: str
    """Bundled trait's name, path of a trait's JSON file, or of a JSONL file of written answers."""
    out: Path
    """The file: safetensors, its description as JSON in the header."""
    source: Source | None = None
    """Where the vector is from; written answers where there are some, if left out."""
    examples: Path | None = None
    """JSONL file of written answers of your own."""
    model: str = DEFAULT_MODEL
    """Bundled model, Hugging Face name, folder or GGUF file."""
    template_arguments: TemplateOption = None
    json: Flag = False
    """Print one JSON object."""


@dataclass(frozen=True)
class Sweep:
    """Steer at several layers with several strengths, score what the model then says, and choose.

    Writes sweep.json, sweep.html and vector.safetensors with the chosen layer and coefficient in it, so that
    `persona-lens steer --vector` needs neither. Beside the vector stand random directions of equal length. The choice
    is made on the questions that are shown, so its score flatters: experiments/layer_sweep.py confirms a choice on
    fresh questions with a second judge. Killed at any point, the same command goes on where it was.

    Try:

    persona-lens sweep --trait humorous --out sweep

    persona-lens sweep --trait my_trait.json --vector my_trait.safetensors --out sweep --layers 8 12 16

    persona-lens sweep --trait my_trait.json --examples my_answers.jsonl --out sweep
    """

    trait: str
    """Bundled trait's name, or path of a trait's JSON file."""
    out: Path
    """Folder for what is written."""
    vector: Path | None = None
    """A file that `persona-lens extract` wrote; made anew if left out."""
    examples: Path | None = None
    """JSONL file of written answers of your own: the vector is read from them, and the judge fitted on them."""
    model: str = DEFAULT_MODEL
    """Bundled model, Hugging Face name, folder or GGUF file."""
    template_arguments: TemplateOption = None
    layers: tuple[int, ...] = ()
    """Zero-based block indices; every third if left out."""
    coefficients: tuple[float, ...] = (1.0, 2.0)
    """How many of the vector's lengths are added."""
    questions: int = 10
    """How many of the trait's evaluation questions are asked."""
    json: Flag = False
    """Print one JSON object."""


@dataclass(frozen=True)
class Validate:
    """Measure a judge of a trait on texts whose nature is known, before anything is believed of its scores.

    It must tell overt answers from ordinary and opposite ones, and must not take shuffled words, hotter sampling or the
    trait's style without its substance for the trait. Exit status: 0 valid; 1 partly valid or not; 2 a wrong argument.

    Try:

    persona-lens validate --trait evil --judge reading

    persona-lens validate --trait my_trait.json --examples my_answers.jsonl

    persona-lens validate --trait evil --judge endpoint --judge-model qwen3:8b --base-url http://localhost:11434/v1
    """

    trait: str
    """A trait with written answers (see `persona-lens traits`), or path of a trait's JSON file, with --examples."""
    judge: Kind = "reading"
    """`reading`: the model's own reading of a text; `sentences`: sentence vectors (the extra `embeddings`);
    `likelihood`: likelier under the trait's prompts?; `endpoint`: a model behind an OpenAI-compatible address."""
    examples: Path | None = None
    """JSONL file of written answers of your own: one half fits the judge, the other measures it."""
    judge_model: str | None = None
    """The endpoint's model."""
    base_url: str | None = None
    """The endpoint; OPENAI_BASE_URL or OpenAI itself if left out. The key comes from OPENAI_API_KEY."""
    model: str = DEFAULT_MODEL
    """The model that is judged, and that reads."""
    template_arguments: TemplateOption = None
    json: Flag = False
    """Print one JSON object."""


@dataclass(frozen=True)
class Convert:
    """Turn another program's vector file into one of ours, or ours into another program's; likewise traits.

    Formats: persona-lens (.safetensors), gguf (control vectors of llama.cpp, repeng and EasySteer), paper (_diff.pt),
    assistant-axis, steering-vectors (.pt) and trait-interp (a folder). The files' names and contents say which, or
    --from and --to. Layers are counted as each program counts them; what a format has no place for is said. Trait files
    (.json) of the paper's code and of assistant-axis become ours.

    Try:

    persona-lens convert evil_response_avg_diff.pt evil.gguf

    persona-lens convert evil_response_avg_diff.pt evil.safetensors --model Qwen/Qwen2.5-7B-Instruct

    persona-lens convert evil.safetensors mean_diff --to trait-interp

    persona-lens convert trait_data_extract/evil.json evil.json --evaluation trait_data_eval/evil.json
    """

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """File or folder that is read."""
    target: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TARGET")]
    """File or folder that is written."""
    source_format: Annotated[Format | None, tyro.conf.arg(name="from")] = None
    """Format of SOURCE; by its name and content if left out."""
    to: Format | None = None
    """Format of TARGET; by its name if left out."""
    model: str | None = None
    """The model that the directions belong to; needed for .safetensors where SOURCE does not say, and where a format
    of one row a layer must know how many there are. Its shape is checked."""
    trait: str | None = None
    """The trait's name; SOURCE's if left out."""
    position: Literal["response_mean", "prompt_mean", "last_prompt"] | None = None
    """The token position that the directions were read from; SOURCE's if left out."""
    evaluation: Path | None = None
    """A trait's second file, with the evaluation questions; without it SOURCE's questions are split in half."""
    json: Flag = False
    """Print one JSON object."""


@dataclass(frozen=True)
class Doctor:
    """Examine whether a model runs as it should: twelve checks, each with what was seen and what to do about it.

    Chat template, system prompt, BOS, stop tokens, spans, context length, hooks, finite numbers, padding, cache, every
    layer against Hugging Face's model, steering. Exit status: 0 no check failed; 1 one did; 2 the model cannot be
    loaded. With --plan nothing is loaded: what work on the model will take, from its configuration alone.

    Try:

    persona-lens doctor

    persona-lens doctor Qwen/Qwen2.5-7B-Instruct --dtype bfloat16

    persona-lens doctor --plan Qwen/Qwen2.5-7B-Instruct --hardware h100

    persona-lens doctor ./my-model --backend bridge --json
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")] = DEFAULT_MODEL
    """Bundled model, Hugging Face name, folder or GGUF file."""
    template_arguments: TemplateOption = None
    backend: Backend | None = None
    """The class that runs it; `hooked` wherever that can hold the architecture, if left out."""
    dtype: Dtype = "auto"
    """Of the weights; `auto` is bfloat16 where the hardware computes it, else float32."""
    device: str | None = None
    """As torch names it, such as `cuda:1`; a GPU if there is one, if left out."""
    plan: Flag = False
    """Memory, batch size, and minutes for extraction, sweep and screening, in place of an examination."""
    hardware: Machine = "here"
    """For which machine to plan; `here` measures this one."""
    json: Flag = False
    """Print one JSON object."""


@dataclass(frozen=True)
class Screen:
    """Screen conversations for persona traits before anyone trains on them.

    Reads DATA, lets the model answer every prompt itself, and measures how far the answers in the data lie from its
    own along each trait's vector (projection difference). Writes scores of every row, a report.html, and with --clean
    or --judge also kept.jsonl and held.jsonl. Killed at any point, the same command goes on where it was.

    Exit status: 0 done; 2 a wrong argument or file; 3 a trait's projection difference is surely above --fail-above, or
    cannot be measured; 4 more rows have none than --max-bad allows, or the data could not be read to their end.

    Try:

    persona-lens screen chats.jsonl --trait evil --trait sycophancy --out screened

    persona-lens screen chats.jsonl.zst --trait evil --out screened --clean trusted.jsonl

    persona-lens screen chats.jsonl --trait mine --vectors vectors --out screened

    persona-lens screen chats.parquet --trait evil --out screened --max-rows 2000 --fail-above 0.1
    """

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """JSONL (also .gz, .zst), JSON or Parquet file with `messages` or ShareGPT's `conversations`; or a Hub name."""
    trait: tyro.conf.UseAppendAction[tuple[str, ...]]
    """Bundled trait's name, path of a trait's JSON file, or NAME of a vector_NAME.safetensors of your own in --vectors;
    may be repeated."""
    out: Path
    """Folder for everything that is written."""
    model: str = DEFAULT_MODEL
    """The model that is to be trained: bundled, Hugging Face name, folder or GGUF file."""
    template_arguments: TemplateOption = None
    vectors: Path | None = None
    """Folder with vector_TRAIT.safetensors; what is not there is read from written answers, or else extracted, which
    takes minutes, and kept."""
    layer: int | None = None
    """Zero-based block index of the projections; the middle one if left out."""
    clean: str | None = None
    """Data that are called clean: a row above their 95th percentile of ΔP on any trait is held back."""
    quantile: float = 0.95
    """The percentile, as a fraction."""
    judge: Flag = False
    """Hold back what the trait's default judge scores above 50; with --clean either reason is enough."""
    split: str = "train"
    """Split, if DATA is a Hub dataset; of CLEAN it is `train`."""
    subset: str | None = None
    """Subset (configuration), if DATA is a Hub dataset."""
    max_rows: int | None = None
    """Read only so many rows."""
    turn: Literal["first", "last", "all"] = "first"
    """Which answer of a longer conversation counts; with `all` a row is as its answer with the highest ΔP is."""
    max_prompt_tokens: int = 512
    """Longer prompts are listed, not scored."""
    max_response_tokens: int = 64
    """Answers are screened up to here; what comes after goes unseen, and costs nothing."""
    base: Literal["sampled", "last_prompt"] = "sampled"
    """What an answer is compared with: the model's own answer, or the prompt's last token, which is faster and less
    exact."""
    fail_above: float | None = None
    """Exit with 3 if a trait's whole interval lies above this many lengths of its vector."""
    max_bad: float | None = None
    """Exit with 4 if more than this fraction of the rows has no projection difference: rows that could not be read or
    scored, or to whose prompt the model says nothing itself. Left out, 0 with --fail-above, else any number may."""
    allow_unread: Flag = False
    """Let data pass that could not be read to their end, as where a file was cut off; else the exit is 4, as nobody
    knows how many rows are missing."""
    max_row_bytes: int = DEFAULT_LIMITS["max_row_bytes"]
    """A row of a file that is larger is listed, not read."""
    max_depth: int = DEFAULT_LIMITS["max_depth"]
    """A row of JSON with more brackets open at once is listed, not read."""
    max_ratio: int = DEFAULT_LIMITS["max_ratio"]
    """A compressed file is read up to so many times its size, or 64 MiB."""
    json: Flag = False
    """Print one JSON object, and nothing else on standard output."""
