"""Values that a recipe or a command line may hold, drawn by hypothesis."""

from hypothesis import strategies as st

# Text that YAML or a command line could take for something else.
LOOKS_LIKE = (
    # Words and numbers of YAML 1.1 or 1.2.
    ["no", "null", "~", "1e-4", "010", "2024", "1_000", "12:30", "2024-01-01", ".inf", "=", "<<"]
    # Marks that have a meaning in YAML.
    + ["- a", "a: b", "# a", "a #b", "'a'", '"', "{a", "[a", "&a", "*a", "!a", "| ", "@a", "%a"]
    # What looks like a flag.
    + ["--", "---", "--data", "-1"]
    # Space and line breaks, as YAML counts them.
    + ["\n", "\r\n", "\x85", "\u2028", " "]
)
# No lone surrogates, which UTF-8 cannot hold, and no NUL, which no path can hold.
TEXT = st.one_of(
    st.sampled_from(LOOKS_LIKE),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
)
BAD_NUMBERS = [10**400, -1, 0, 0.5, "1", "nan", "1e999", "0" * 5000, "9" * 5000]
BRACKETS = ["[", "{", "[1]", "{a: 1}", "[" * 3000]
SIMPLE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    TEXT,
    st.text(),
    st.sampled_from([*BAD_NUMBERS, *BRACKETS]),
)


def _containers(inner: st.SearchStrategy) -> st.SearchStrategy:
    keys = st.text(max_size=3) | st.integers()
    return st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3)


ANYTHING = st.recursive(SIMPLE, _containers, max_leaves=5)
