"""Site files that inherit from one another: what holds, where it comes from, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from cvmfs_publish.errors import InputError
from cvmfs_publish.sites.data import list_sites, load_site, read_site
from cvmfs_publish.sites.describe import effective_origins, effective_values, find_origin
from cvmfs_publish.sites.model import DROPPED_VARIABLES, RANK_VARIABLES, Site


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)


def load(folder: Path, name: str = "mine") -> Site:
    return load_site(str(folder / f"{name}.yaml"))


def refusal(folder: Path, name: str = "mine") -> str:
    with pytest.raises(InputError) as caught:
        load(folder, name)
    return str(caught.value).replace(f"{folder}/", "")


def test_sections_merge_key_by_key_and_the_nearer_file_wins(folder: Path) -> None:
    write(
        folder,
        lab="name: lab\ngpu: nv\nfallback: {cache_mb: 40000, image_mb: 100}\nroots: [/a, /b]\n",
        mine="name: mine\ninherits: [./lab.yaml]\nfallback: {image_mb: 200}\nroots: [/c]\n",
    )
    mine = load(folder)
    assert (mine.name, mine.gpu) == ("mine", "nv")
    assert (mine.fallback.cache_mb, mine.fallback.image_mb) == (40000, 200)
    assert mine.roots == ("/c",)


def test_later_parents_win_over_earlier_ones_and_a_file_over_its_parents(folder: Path) -> None:
    write(
        folder,
        base="home: none\ngpu: none\nmode: supervise\n",
        one="inherits: [./base.yaml]\ngpu: nv\nmode: exec\n",
        two="inherits: [./base.yaml]\nhome: scratch\n",
        mine="name: mine\ninherits: [./one.yaml, ./two.yaml]\n",
    )
    mine = load(folder)  # base counts once, below both
    assert (mine.home, mine.gpu, mine.mode) == ("scratch", "nv", "exec")


def test_a_site_that_came_along_is_inherited_by_its_name(folder: Path) -> None:
    write(folder, mine="name: mine\ninherits: [generic]\ngpu: none\n")
    assert load(folder).repositories == load_site("generic").repositories


def test_paths_are_relative_to_the_file_that_names_them(folder: Path) -> None:
    (folder / "below").mkdir()
    write(folder, base="gpu: nv\n")
    write(folder / "below", mid="inherits: [../base.yaml]\n")
    write(folder, mine="name: mine\ninherits: [below/mid.yaml]\n")
    assert load(folder).gpu == "nv"


def test_the_name_and_the_description_are_not_inherited(folder: Path) -> None:
    write(folder, lab="name: lab\ndescription: of the lab\n", mine="inherits: [./lab.yaml]\n")
    assert "mine.yaml:1: required key 'name' missing" in refusal(folder)
    write(folder, mine="name: mine\ninherits: [./lab.yaml]\n")
    assert load(folder).description == ""


def test_inherited_stands_for_the_items_that_would_be_replaced(folder: Path) -> None:
    write(
        folder,
        lab="roots: [/a, /b]\nbinds: [{source: /x}]\nbatch: {systems: [slurm],"
        " options: {slurm: [-a]}}\n",
        mine="name: mine\ninherits: [./lab.yaml]\nroots: [/c, inherited, /d]\n"
        "binds: [inherited, {source: /y}]\nbatch: {options: {slurm: [inherited, -b]}}\n"
        "scratch: [inherited, /s]\n",
    )
    mine = load(folder)
    assert mine.roots == ("/c", "/a", "/b", "/d")
    assert [bind.source for bind in mine.binds] == ["/x", "/y"]
    assert mine.batch.options == {"slurm": ("-a", "-b")}
    assert mine.scratch == ("/s",)  # no parent says anything


def test_inherited_stands_for_the_default_where_no_file_gives_the_list(folder: Path) -> None:
    write(
        folder, mine="name: mine\nenvironment: {drop: [inherited, FOO]}\nroots: [/x, inherited]\n"
    )
    mine = load(folder)
    assert mine.environment.drop == (*DROPPED_VARIABLES, "FOO")
    assert mine.roots == ("/x", "standard")


def test_default_variables_stay_unless_they_are_taken_back(folder: Path) -> None:
    name, *others = RANK_VARIABLES
    write(folder, mine=f"name: mine\nmpi:\n  environment: {{A: b, {name}: null}}\n")
    assert load(folder).mpi.environment == {**{n: RANK_VARIABLES[n] for n in others}, "A": "b"}


def test_inherited_in_quotes_is_a_word_like_others(folder: Path) -> None:
    software = "software: [{name: x, version: '1', image: a:1, commands: ['inherited']}]\n"
    write(folder, mine=f"name: mine\n{software}")
    assert load(folder).software[0].commands == ("inherited",)


def test_null_takes_back_and_an_empty_section_says_nothing(folder: Path) -> None:
    write(
        folder,
        lab="client: {http_proxy: DIRECT}\nhooks: {after: /x}\nprobe_timeout: 9s\n"
        "environment: {set: {A: b, C: d}}\nimages: {cpu: a:1}\n",
        mine="name: mine\ninherits: [./lab.yaml]\nclient: null\nhooks: ~\nprobe_timeout: null\n"
        "environment: {set: {A: null}}\nimages:\n  # cpu: b:1\n",
    )
    mine = load(folder)
    assert (mine.client, mine.hooks.after) == (None, None)
    assert mine.probe_timeout.total_seconds() == 5
    assert mine.environment.set == {"C": "d"}
    assert mine.images.cpu == "a:1"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"mine": "name: mine\ninherits: [./lab.yaml]\n"},
            "mine.yaml:2: inherits: lab.yaml: cannot be read: No such file",
        ),
        (
            {"mine": "name: mine\ninherits:\n  - genric\n"},
            "mine.yaml:3: inherits: no site 'genric'; did you mean 'generic'?",
        ),
        (
            {"lab": "\ninherits: [./mine.yaml]\n", "mine": "name: mine\ninherits: [./lab.yaml]\n"},
            "lab.yaml:2: inherits: a file inherits from itself: mine.yaml -> lab.yaml -> mine.yaml",
        ),
        ({"mine": "name: mine\ninherits: [mine.yaml]\n"}, "a file inherits from itself"),
        ({"mine": "name: mine\ninherits: generic\n"}, "mine.yaml:2: inherits: wants a list"),
        ({"mine": "name: mine\ninherits: [[a]]\n"}, "mine.yaml:2: inherits: wants the name"),
        (
            {"lab": "gpu: nv\n\nhoem: none\n", "mine": "name: mine\ninherits: [./lab.yaml]\n"},
            "lab.yaml:3: unknown key 'hoem'; did you mean 'home'?",
        ),
        (
            {
                "lab": "# x\nfallback:\n  cache_mb: many\n",
                "mine": "name: mine\ninherits: [lab.yaml]\n",
            },
            "lab.yaml:3: fallback.cache_mb: wants a whole number, found 'many'",
        ),
        (
            {
                "lab": "fallback:\n  chain: [cache, mirror]\n  mirrors: ['http://m.org']\n",
                "mine": "name: mine\ninherits: [lab.yaml]\nfallback:\n  mirrors: []\n",
            },
            "lab.yaml:2: fallback.chain: chain has mirror, and mirrors is empty",
        ),
        (
            {
                "lab": "binds:\n- source: /a\n  target: /x\n",
                "mine": "name: mine\ninherits: [lab.yaml]\nbinds:\n- {source: /b, target: /x}\n"
                "- inherited\n",
            },
            "lab.yaml:2: binds[1]: /b and /a are both mounted at /x",
        ),
        ({"lab": "- a\n", "mine": "name: mine\ninherits: [lab.yaml]\n"}, "lab.yaml:1: wants a sec"),
        ({"lab": "a\n", "mine": "name: mine\ninherits: [lab.yaml]\n"}, "lab.yaml:1: wants a sec"),
        (
            {"lab": "a: [\n", "mine": "name: mine\ninherits: [lab.yaml]\n"},
            "lab.yaml:2:1: not valid",
        ),
        (
            {"lab": "gpu: nv\ngpu: nv\n", "mine": "name: mine\ninherits: [lab.yaml]\n"},
            "lab.yaml:2: gpu: is given twice; the first is at line 1",
        ),
        ({"mine": "name: mine\nbinds: [inherited]\n"}, "mine.yaml:2: binds: nothing is inherited"),
        (
            {"mine": "name: mine\nsoftware: [{name: x, commands: [inherited]}]\n"},
            "mine.yaml:2: software: `inherited` means nothing inside an item of a list",
        ),
        ({"mine": "name: mine\nbinds: &a [*a]\n"}, "too many values or levels"),
    ],
)
def test_what_cannot_be_put_together_names_file_and_line(
    folder: Path, files: dict[str, str], message: str
) -> None:
    write(folder, **files)
    assert message in refusal(folder)


def test_a_chain_of_parents_has_an_end(folder: Path) -> None:
    write(folder, **{f"p{n}": f"inherits: [p{n + 1}.yaml]\n" for n in range(20)})
    assert "p15.yaml:1: inherits: more than 16 files make up the site" in refusal(folder, "p0")
    write(folder, p3="gpu: nv\n", p0="name: mine\ninherits: [p1.yaml]\n")
    assert load(folder, "p0").gpu == "nv"


def test_every_mistake_is_told_in_one_go_with_the_file_it_is_in(folder: Path) -> None:
    write(
        folder,
        lab="gpu: maybe\nroots: [a, /b, c]\n",
        mine="name: mine\ninherits: [./lab.yaml]\nhoem: x\nfallback: {cache_mb: x, chian: []}\n",
    )
    reading = read_site(str(folder / "mine.yaml"))
    found = [str(error).replace(f"{folder}/", "").split(": ")[0] for error in reading.errors]
    assert (
        sorted(found)
        == ["lab.yaml:1", "lab.yaml:2", "lab.yaml:2"] + ["mine.yaml:3"] + ["mine.yaml:4"] * 2
    )
    assert reading.value is None


def test_the_origin_of_every_value_is_known(folder: Path) -> None:
    write(
        folder,
        lab="roots: [/sdf, standard]\nfallback:\n  cache_mb: 30000\nenvironment:\n  set: {A: b}\n",
        mine="name: mine\ninherits: [./lab.yaml]\nroots:\n- /mine\n- inherited\n"
        "binds:\n- source: /a\n  target: /nfs\n",
    )
    reading = read_site(str(folder / "mine.yaml"))
    values = effective_values(reading.get())
    origins = {
        key: place.replace(f"{folder}/", "")
        for key, place in effective_origins(reading.get(), reading.origins).items()
    }
    assert origins["name"] == "mine.yaml:1"
    assert origins["fallback.cache_mb"] == "lab.yaml:3"
    assert origins["environment.set.A"] == "lab.yaml:5"
    assert origins["fallback.image_mb"] == "default"
    assert origins["binds[0].target"] == "mine.yaml:8"
    assert origins["binds[0].required"] == "default"
    assert isinstance(values["roots"], list)
    assert [origins[f"roots[{n}]"] for n in (0, 1, 2, len(values["roots"]) - 1)] == [
        "mine.yaml:4",
        "lab.yaml:1",
        "lab.yaml:1",
        "lab.yaml:1",
    ]
    assert find_origin(reading.origins, "binds[0].read_only").endswith("mine.yaml:7")
    assert find_origin(reading.origins, "gpu") == "default"


@pytest.mark.parametrize("name", [*list_sites(), "example"])
def test_values_that_came_along_are_shown_without_folders_of_this_machine(name: str) -> None:
    reading = read_site(name)
    places = {place.rpartition(":")[0] for place in reading.origins.values()}
    places -= {""}  # of what is `default`, where `inherited` stands for it
    assert places <= {f"{known}.yaml" for known in [*list_sites(), "example"]}
    assert f"{name}.yaml" in places
