"""Typed decisions: questions about one state, answered with a probability for every option.

What can be asked, how it is written, and what is made of the logits; and the two formats in which
web servers are asked such questions. No model is needed for that, and none is loaded here.
"""

from __future__ import annotations

from .answers import (
    Answer,
    ChoiceAnswer,
    Decision,
    FailedAnswer,
    PredicateAnswer,
    ScoreAnswer,
    Usage,
    choice_confidence,
    score_confidence,
)
from .openai import OpenAIRequest, openai_request, openai_response
from .questions import Choice, Predicate, Question, Score, read_questions
from .systemone import (
    SystemOneRequest,
    systemone_error,
    systemone_request,
    systemone_response,
)

__all__ = [
    "Answer",
    "Choice",
    "ChoiceAnswer",
    "Decision",
    "FailedAnswer",
    "OpenAIRequest",
    "Predicate",
    "PredicateAnswer",
    "Question",
    "Score",
    "ScoreAnswer",
    "SystemOneRequest",
    "Usage",
    "choice_confidence",
    "openai_request",
    "openai_response",
    "read_questions",
    "score_confidence",
    "systemone_error",
    "systemone_request",
    "systemone_response",
]
