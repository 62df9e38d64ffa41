"""Rules between options, by subject.

Each function gives a sentence for every rule that is broken: the option, its value, the rule, and a way out.
"""
