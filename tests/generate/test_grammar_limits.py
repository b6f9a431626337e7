"""Grammars that llama.cpp's recursive parser would end the process over."""

from __future__ import annotations

import pytest

import alora_gguf as ag
from alora_gguf.options import MAX_GRAMMAR, MAX_GRAMMAR_DEPTH, MAX_GRAMMAR_RULES


@pytest.mark.parametrize(
    ("grammar", "said"),
    [
        ("root ::= " + "(" * 20000, "20000 deep, expected at most 200"),
        ("", "the grammar is empty"),
        (" \n", "the grammar is empty"),
        ('root ::= "' + "x" * MAX_GRAMMAR + '"', "bytes, expected at most 1048576"),
        ("root ::= a\n" + "a ::= b\n" * MAX_GRAMMAR_RULES, "10001 rules, expected at most 10000"),
    ],
)
def test_a_grammar_beyond_a_limit_is_refused(grammar: str, said: str) -> None:
    with pytest.raises(ag.InputError, match=said):
        ag.Sampling(grammar=grammar)


def test_parentheses_in_strings_classes_and_comments_do_not_nest(model: ag.Model) -> None:
    many = "(" * 5000
    grammar = f'root ::= "{many}" | [({many}] # {many}\n'
    assert ag.Sampling(grammar=grammar).grammar == grammar


def test_the_deepest_grammar_and_the_longest_chain_are_parsed(model: ag.Model) -> None:
    deep = "root ::= " + "(" * MAX_GRAMMAR_DEPTH + '"a"' + ")" * MAX_GRAMMAR_DEPTH
    n = MAX_GRAMMAR_RULES - 1
    chain = "root ::= r-0\n" + "".join(f"r-{i} ::= r-{i + 1}\n" for i in range(n - 1))
    for grammar in (deep, f'{chain}r-{n - 1} ::= "a"\n'):
        with model.session() as session:
            session.append("Say")
            reply = session.generate(max_tokens=1, grammar=grammar)
            assert "".join(reply) == "a"
