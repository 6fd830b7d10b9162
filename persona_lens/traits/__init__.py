"""Traits: what is looked for, in words."""

from persona_lens.traits.authoring import author_trait, read_authored_answer, write_authoring_prompt
from persona_lens.traits.everyday import load_ordinary_questions
from persona_lens.traits.library import list_traits, load_trait
from persona_lens.traits.roles import Role, list_roles, load_role, load_role_questions
from persona_lens.traits.statements import (
    EntityQuestion,
    Statement,
    list_statement_kinds,
    load_entity_questions,
    load_statements,
)
from persona_lens.traits.trait import InstructionPair, Trait
from persona_lens.traits.users import UserScript, list_user_kinds, load_user_scripts
from persona_lens.traits.written import WrittenExample, list_written_traits, load_written_examples

__all__ = [
    "EntityQuestion", "InstructionPair", "Role", "Statement", "Trait", "UserScript", "WrittenExample", "author_trait",
    "list_roles", "list_statement_kinds", "list_traits", "list_user_kinds", "list_written_traits",
    "load_entity_questions", "load_ordinary_questions", "load_role", "load_role_questions", "load_statements",
    "load_trait", "load_user_scripts", "load_written_examples",
    "read_authored_answer", "write_authoring_prompt",
]  # fmt: skip
