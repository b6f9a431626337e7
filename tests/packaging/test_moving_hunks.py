"""native/moving: where a patch's hunks belong in another version, and how the patch is written."""

from __future__ import annotations

from pathlib import Path

import pytest
from moving import changes, hunks, report  # native/ is on the path (pyproject.toml)

NATIVE = Path(__file__).resolve().parents[2] / "native"

OLD = """\
// the beginning

int first(int n) {
    int sum = n;
    sum += 1;

    return sum;
}

int second(int n) {
    int product = n;
    product *= 2;

    return product;
}

int third(int n) {
    int rest = n % 3;

    return rest;
}
"""
PATCH = """\
What it is for.
diff --git a/src/a.cpp b/src/a.cpp
--- a/src/a.cpp
+++ b/src/a.cpp
@@ -6,3 +6,3 @@ int first(int n) {

-    return sum;
+    return ours(sum);
 }
@@ -11,2 +11,3 @@ int second(int n) {
     int product = n;
+    note(product);
     product *= 2;
@@ -19,3 +20,3 @@ int third(int n) {

-    return rest;
+    return ours(rest);
 }
""".replace("\n\n", "\n \n")


@pytest.fixture
def patch(tmp_path: Path) -> hunks.Patch:
    (tmp_path / "hooks.patch").write_text(PATCH)
    return hunks.read_patch(tmp_path / "hooks.patch")


def tree(text: str) -> hunks.Tree:
    return {"src/a.cpp": text.split("\n")}


def placed(patch: hunks.Patch, new: str) -> list[hunks.Placed]:
    return hunks.place(patch, tree(OLD), tree(new))


def outcomes(patch: hunks.Patch, new: str) -> list[str]:
    return [str(each) for each in placed(patch, new)]


# ---- reading and writing -------------------------------------------------------------------------


def test_without_a_change_the_patch_has_the_same_bytes(patch: hunks.Patch) -> None:
    found = placed(patch, OLD)
    assert [each.outcome for each in found] == ["exact"] * 3
    assert hunks.write_patch(patch, tree(OLD), found) == PATCH


def test_a_moved_patch_is_exact_for_the_new_version(patch: hunks.Patch, tmp_path: Path) -> None:
    new = OLD.replace("int second", "// more\n\nint second").replace("the beginning", "the start")
    text = hunks.write_patch(patch, tree(new), placed(patch, new))
    assert "@@ -13,2 +13,3 @@ int second(int n) {" in text
    (tmp_path / "moved.patch").write_text(text)
    again = hunks.read_patch(tmp_path / "moved.patch")
    result = hunks.apply(tree(new), hunks.at_own_lines(again, tree(new)))
    assert result == hunks.apply(tree(new), placed(patch, new))
    assert "    return ours(rest);" in result["src/a.cpp"]


def test_what_was_changed_by_hand_becomes_a_patch(patch: hunks.Patch) -> None:
    done = hunks.apply(tree(OLD), hunks.at_own_lines(patch, tree(OLD)))["src/a.cpp"]
    found = hunks.changes("src/a.cpp", tree(OLD)["src/a.cpp"], done)
    assert hunks.write_patch(patch, tree(OLD), found) == PATCH


def test_a_patch_of_another_version_is_refused(patch: hunks.Patch) -> None:
    with pytest.raises(hunks.PatchError, match=r"hunk 2 of src/a\.cpp does not match line 11 of"):
        hunks.at_own_lines(patch, tree(OLD.replace("product = n;", "product = 1;")))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("@@ -11,2 +11,3 @@", "@@ -11,2 +11,9 @@", r"hooks\.patch:10: the hunk's lines are not as"),
        ("+++ b/src/a.cpp", "*** b/src/a.cpp", r"hooks\.patch:4: neither a hunk nor the beginning"),
        ("b/src/a.cpp\n---", "b/src/b.cpp\n---", r"src/a\.cpp may not become src/b\.cpp"),
        (PATCH, "nothing\n", r"hooks\.patch: holds no hunk"),
    ],
)
def test_what_is_no_patch_is_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    file = tmp_path / "hooks.patch"
    file.write_text(PATCH.replace(old, new))
    with pytest.raises(hunks.PatchError, match=said):
        hunks.read_patch(file)


# ---- placing -------------------------------------------------------------------------------------


def test_lines_above_move_a_hunk(patch: hunks.Patch) -> None:
    new = OLD.replace("int second", "int more;\n\nint second")
    assert outcomes(patch, new) == ["exact", "+2", "+2"]


def test_changed_context_is_fuzz(patch: hunks.Patch) -> None:
    new = OLD.replace("\n    return sum;", "    sum *= 2;\n    return sum;")
    found = placed(patch, new)
    assert [str(each) for each in found] == ["fuzz 1 (same line)", "exact", "exact"]
    assert found[0].note == "its context changed"
    assert " \n-    return sum;" not in hunks.write_patch(patch, tree(new), found)


@pytest.mark.parametrize(
    ("old", "new"),
    [("product *= 2;", "product <<= 1;"), ("int product = n;", "long product = n;")],
)
def test_a_line_is_added_beside_the_neighbour_that_is_left(
    patch: hunks.Patch, old: str, new: str
) -> None:
    text = OLD.replace(old, new)
    found = placed(patch, text)
    assert [each.outcome for each in found] == ["exact", "fuzz", "exact"]
    above, ours, below = hunks.apply(tree(text), found)["src/a.cpp"][10:13]
    assert ours == "    note(product);"
    assert [above, below] == text.split("\n")[10:12]


def test_another_function_is_fuzz_and_named(patch: hunks.Patch) -> None:
    new = OLD.replace("int third(int n) {", "static int rest_of(int n, int of) {")
    found = placed(patch, new)[2]
    assert (found.outcome, found.moved) == ("fuzz", 0)
    assert found.note == "now in: static int rest_of(int n, int of) {"
    assert "@@ static int rest_of(int n, int of) {" in hunks.write_patch(
        patch, tree(new), placed(patch, new)
    )


def test_functions_that_change_places_are_found_and_written_in_order(patch: hunks.Patch) -> None:
    head, first, second, third = OLD.split("int ", 3)[0], *OLD.split("\n\nint ")[1:]
    new = head + "int " + "\n\nint ".join([third.rstrip("\n"), first, second]) + "\n"
    found = placed(patch, new)
    assert all(each.start is not None for each in found)
    text = hunks.write_patch(patch, tree(new), found)
    assert text.index("ours(rest)") < text.index("ours(sum)") < text.index("note(product)")


def test_a_changed_line_fails_and_what_became_of_it_is_said(patch: hunks.Patch) -> None:
    found = placed(patch, OLD.replace("return rest;", "return rest < 0 ? -rest : rest;"))
    assert [str(each) for each in found] == ["exact", "exact", "FAILED"]
    assert found[2].note == "line 20 of the old file became line 20"


def test_a_function_that_is_gone_is_not_taken_for_its_neighbour(tmp_path: Path) -> None:
    def alike(text: str) -> str:
        return text.replace("return sum;", "return n;").replace("return rest;", "return n;")

    file = tmp_path / "alike.patch"
    file.write_text(alike(PATCH))
    same = alike(OLD)
    without_first = same[: same.index("int first")] + same[same.index("int second") :]
    found = hunks.place(hunks.read_patch(file), tree(same), tree(without_first))
    assert [str(each) for each in found] == ["FAILED", "-7", "-7"]


def test_a_file_that_is_gone_fails(patch: hunks.Patch) -> None:
    found = hunks.place(patch, tree(OLD), {"src/a.cpp": [""]})
    assert [each.outcome for each in found] == ["failed"] * 3


# ---- what a hunk is for --------------------------------------------------------------------------


def test_the_readme_says_what_each_hunk_is_for() -> None:
    for file in sorted((NATIVE / "patches").glob("*.patch")):
        for hunk in hunks.read_patch(file).hunks:
            assert "no row" not in report.purpose(file.name, hunk), (hunk.path, hunk.heading)


# ---- what changed upstream -----------------------------------------------------------------------


def write(folder: Path, **files: str) -> Path:
    names = {
        "graph": "src/llama-graph.h",
        "arch": "src/llama-arch.cpp",
        "header": "include/llama.h",
        "model": "src/models/new.cpp",
    }
    for name, text in files.items():
        (folder / names[name]).parent.mkdir(parents=True, exist_ok=True)
        (folder / names[name]).write_text(text)
    return folder


GRAPH = """\
struct llm_graph_params {
    llm_arch arch = LLM_ARCH_UNKNOWN;
    const llama_cross * cross; // a comment; with a semicolon
    std::map<int, int> samplers;%s

    bool allow_reuse(const llm_graph_params & other) const {
        if (!ubatch.equal(other.ubatch.n_tokens)) { return false; }
        return cross == other.cross%s;
    }
};
"""


def test_what_changed_where_we_rely_on_upstream(tmp_path: Path) -> None:
    old = write(
        tmp_path / "old",
        graph=GRAPH % ("", ""),
        arch='{ LLM_ARCH_LLAMA, "llama" },\n{ LLM_ARCH_UNKNOWN, "(unknown)" },\n',
        header="LLAMA_API int32_t llama_a(int n);\nLLAMA_API void llama_b(void);\n"
        "struct llama_x {\n    int a; // one\n};\nstruct llama_y;\n",
        model="cur = ggml_mul_mat(ctx0, model.output, cur);\n",
    )
    new = write(
        tmp_path / "new",
        graph=GRAPH % ("\n    int gtype;", " && gtype == other.gtype"),
        arch='{ LLM_ARCH_LLAMA, "llama" },\n{ LLM_ARCH_NEW, "new" },\n',
        header="LLAMA_API int32_t llama_a(int n, // how many\n    int m);\n"
        "struct llama_x {\n    int a; // two\n    bool b;\n};\nstruct llama_y;\n",
        model="""\
    cur = ggml_mul_mat(ctx0, model.output, cur);
    cur = ggml_mul_mat(ctx0, model.layers[il].wz, cur);
    // cur = ggml_mul_mat(ctx0, model.layers[il].wy, cur);
    cur = ggml_mul_mat(ctx0, q, k);
    cur = build_lora_mm(model.layers[il].wo, cur);
""",
    )
    found = changes.compare(old, new, ["src/models/new.cpp"])
    assert found.files == {"src/models/new.cpp": (5, 1)}
    assert found.bypassing == [
        "src/models/new.cpp:2: cur = ggml_mul_mat(ctx0, model.layers[il].wz, cur);"
    ]
    assert found.last_products == [
        "src/models/new.cpp:5: cur = build_lora_mm(model.layers[il].wo, cur);"
    ]
    assert found.allow_reuse == changes.Names(["gtype"])
    assert found.graph_params == changes.Names(["gtype"])
    assert found.architectures == changes.Names(["new"])
    assert found.functions == changes.Names(
        ["llama_a(int n, int m)"], ["llama_a(int n)", "llama_b(void)"]
    )
    assert found.header == {"llama_x": changes.Names(["bool b"])}
    assert "architectures: + new" in found.report()
    assert "structs of llama.h: llama_x (+ bool b)" in found.report()


def test_structs_of_the_binding_are_compared_field_by_field() -> None:
    old = "class llama_model_params(S):\n    _fields_ = [('a', c_int), ('b', c_bool)]\n"
    assert changes.compare_structs(old, old) == {}
    other = old.replace("c_bool", "c_int").replace("('a', c_int)", "('a', c_int), ('c', P(c_int))")
    assert changes.compare_structs(old, other) == {
        "llama_model_params": changes.Names(["b: c_int", "c: P(c_int)"], ["b: c_bool"])
    }
    turned = "class llama_model_params(S):\n    _fields_ = [('b', c_bool), ('a', c_int)]\n"
    (found,) = changes.compare_structs(old, turned).values()
    assert str(found) == "+ the same fields in another order"
