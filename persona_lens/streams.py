"""Every random stream that is numbered: what draws for different purposes from one seed must not draw alike."""

from __future__ import annotations

from enum import IntEnum, unique

from persona_lens.errors import InvalidArgumentError


def check_seed(seed: int) -> None:
    """Refuse a seed that NumPy's generators do not take.

    Raises:
        InvalidArgumentError: A negative one.
    """
    if seed < 0:
        raise InvalidArgumentError.of("seed", "be at least 0", seed)


@unique
class Stream(IntEnum):
    """The number that stands second in a seed, after the one that a user chooses.

    Numbers are never changed, as every published draw rests on them. An index added to one stays below the next.

    Example:
        >>> (0, Stream.EXTRACTION) == (0, 103)
        True
    """

    CALIBRATION = 101  # the labelled responses that a local judge is calibrated on
    SEPARATION = 102  # the held-out responses that tell a judge's AUROC
    EXTRACTION = 103  # the responses whose activations make a persona vector
    SWEEP = 104  # the responses under every layer and coefficient
    CONFIRMATION = 105  # the responses and random directions that a choice is confirmed with
    ORDINARY = 106  # the responses that measure what is ordinary
    CONDITIONS = 107  # the responses under conditions that a user compares
    TOKEN_POSITIONS = 120  # experiments/token_positions.py: responses and the random direction
    STEERING_MODES = 121  # experiments/steering_modes.py: responses
    MONITORING = 130  # experiments/monitoring.py: responses, then setting and condition
    MONITORING_EXAMPLES = 131  # experiments/monitoring.py: the examples that prompts begin with
    TRAIT_DATA = 140  # the responses of a trait's training set
    FINETUNED_SCORES = 150  # experiments on trained models: responses that are scored, plus the trait's index
    ORDINARY_ROWS = 170  # experiments on trained models: the base model's answers among a domain's rows
    SAMPLE_SEPARATION = 190  # experiments/sample_separation.py: responses
    SHUFFLED_WORDS = 200  # which words of a text are shuffled to measure a judge
    REAL_CONVERSATIONS = 230  # experiments/real_conversations.py: which rows are whose, then responses
    EVIDENCE = 240  # experiments/steering_evidence.py: responses and random directions
    BLIND_READING = 250  # experiments/blind_reading.py: which responses are read, and in which order
    STEERING_AWAY = 245  # experiments/steering_away.py: responses and random directions
    PREFERENCE = 108  # which written answers a vector is optimised on, in which order; then the layer
    TRUTH = 300  # experiments/truth.py: random directions, plus the kind's index
    TEMPERATURES = 260  # experiments/judge_validation.py: the model's own responses, cool and hot
    DETECTION = 280  # experiments/detection.py: responses
    HEADS = 290  # experiments/heads.py: random heads and random directions
    WAYS = 270  # experiments/ways_to_steer.py: responses and random directions
    VECTOR_QUALITY = 310  # halvings, bootstrap draws and random directions of a vector's card
    ROLES = 330  # the responses in a role, and shuffles of who said them
    PERSONA_SPACE = 331  # experiments/persona_space.py: responses and random directions
    CONTENTS = 370  # what is in a vector: random directions and features, and experiments/sae_features.py's responses
    PULL_BACK = 390  # responses of the models between a control and a fine-tuned one, and the questions that choose
    CONTROL_MODEL = 391  # experiments/control_model.py: the rows that its models are trained on
    AUTOENCODER = 355  # texts that a sparse autoencoder is trained on, its first weights and the order of its batches
    CONVERSATIONS = 340  # responses in conversations of several turns
    DRIFT = 350  # experiments/drift.py: conversations
    ORDINARY_RESPONSES = 326  # a monitor's ordinary responses, then prompt and rollout
    ALARMS = 321  # experiments/alarms.py: responses, plus the condition's index
    NULL_MARGIN = 360  # the responses and random directions that a vector's null margin is measured with
    VECTOR_TRACKER = 400  # the random vector that tells what a vector tracker's `follow` makes of one
    MOVING_VECTORS = 401  # experiments/moving_vectors.py: which rows a training takes, then responses
    HIDDEN_SIGNAL = 410  # experiments/hidden_signal.py: responses of trained models
    ATTRIBUTIONS = 420  # experiments/attributions.py: scores at random
    INOCULATION = 440  # experiments/inoculation.py: which rows a training takes, its random direction, then responses
    REFLECTION = 380  # conversations in which the model is told how its last answer read
    REFLECTION_PLACEBO = 381  # which other conversation's reading it is told; then rollout and turn
    POSITIVE_TRAITS = 450  # experiments/positive_traits.py: random directions, which rows a training takes, responses
