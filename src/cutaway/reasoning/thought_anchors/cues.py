"""Wordings and signs that tell what a sentence of reasoning does; read by `taxonomy`."""

CUES: tuple[tuple[str, float, str], ...] = (
    ("final_answer_emission", 3.0, r"\*\*final answer|\\boxed"),
    ("final_answer_emission", 1.2, r"\b(final )?answer (is|should be|must be)|go with"),
    ("uncertainty_management", 2.0, r"^(but )?(wait|hold on|hmm)\b"),
    (
        "uncertainty_management",
        1.5,
        r"\b(not (entirely |really )?sure|unsure|confus|contradict|conflict|discrepan|mistake|wrong"
        r"|maybe i('m| am| made| mis))",
    ),
    ("uncertainty_management", 1.0, r"\?$"),
    ("uncertainty_management", 0.8, r"\b(alternatively|perhaps|maybe)\b"),
    (
        "self_checking",
        2.2,
        r"\b(double[- ]check|verif|let me (re)?check|let me confirm|to confirm|to be sure|make sure|recalculat"
        r"|cross-check|re-?examin)",
    ),
    (
        "self_checking",
        1.7,
        r"^(yes|correct|right|okay, so that|good)\b|(that('s| is)|seems|looks|which is) (correct|right|consistent|good)"
        r"|\bmatches\b|makes sense|consistent|same (result|answer)|indeed",
    ),
    (
        "plan_generation",
        1.5,
        r"\b(let me|let's|i('ll| will| need to| should| can| could| have to|'d)"
        r"|we (need to|can|should|could|have to))\b",
    ),
    (
        "plan_generation",
        1.0,
        r"\b(approach|strategy|step by step|break (it|this|that)|try|first,|next,|another way|instead"
        r"|need to (find|figure|calculate|compute|count|determine|consider))\b",
    ),
    ("plan_generation", 0.5, r":$"),
    (
        "problem_setup",
        1.8,
        r"^(okay|alright), so i|\bthe problem (says|is asking|states|asks)|i have this problem|i've got this problem"
        r"|the question is",
    ),
    (
        "fact_retrieval",
        1.2,
        r"\b(recall|remember|i know|formula|defined|definition|theorem|property|known|given (that|as|by)|in general"
        r"|means that|stands for|represents|digits?|each|every)\b",
    ),
    ("fact_retrieval", 0.6, r"^(since|because|for (a|each|the)|in this|the|here)\b"),
    ("result_consolidation", 1.0, r"^(so|therefore|thus|hence|and so|which means)\b"),
    (
        "result_consolidation",
        1.0,
        r"\b(therefore|thus|in total|total (number|of)|so the|this means|is (exactly|approximately)|in summary|overall"
        r"|conclu)\b",
    ),
    ("active_computation", 1.3, r"="),
    ("active_computation", 0.7, r"[-+*/×^≈<>]|\\(frac|times|cdot|binom|div|approx)"),
    ("active_computation", 0.5, r"\d.*\d.*\d"),
)
"""(category, weight, regular expression over the sentence on one line, case ignored)."""
