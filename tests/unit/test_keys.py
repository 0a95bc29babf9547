"""The table of the configuration's keys is that of the reader, and the example is a configuration."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import msgspec
import pytest

from docs.keys import DEFAULTS, EXAMPLE, RULE, TABLES, Key, Table, default_of, example
from lvmigrate import config
from lvmigrate.config import Config
from lvmigrate.convergence import Rule
from lvmigrate.errors import ConfigurationError
from lvmigrate.ipolicy import InstancePolicy
from lvmigrate.service.settings import Settings, Stop, TokenEntry

BY_HEADER = {table.header: table for table in TABLES}
KEYS = [(table, key) for table in TABLES for key in table.keys]


def read(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "cluster.toml"
    path.write_text(text, encoding="utf-8")
    return config.load(path)


def known_to_the_reader(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        read(tmp_path, text)
    found = re.search(r"'nonsense' is not known in .* \(known: (.*)\)", str(caught.value))
    assert found, str(caught.value)
    return found[1].split(", ")


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.header)
def test_every_key_that_is_read_is_in_the_table_and_no_other(tmp_path: Path, table: Table) -> None:
    if table.header == "ipolicy.all":  # there a key is a table itself
        assert [key.name for key in table.keys] == list(InstancePolicy.__slots__)
        return
    if table.header.startswith("service"):
        of = Settings if table.header == "service" else TokenEntry
        tables_of_their_own = {"tokens"}
        known = [field.name for field in msgspec.structs.fields(of) if field.name not in tables_of_their_own]
        assert [key.name for key in table.keys] == known
        return
    others = "" if table.example.startswith("nodes.") else "[nodes.a]\n"
    known = known_to_the_reader(tmp_path, f"{others}[{table.example}]\nnonsense = 1\n")
    assert len(known) == len(set(known))
    assert {key.name for key in table.keys} == set(known)
    assert len(table.keys) == len(known)


def test_every_table_that_is_read_is_there(tmp_path: Path) -> None:
    known = known_to_the_reader(tmp_path, "nonsense = 1\n")
    assert {header.partition(".")[0] for header in BY_HEADER} == set(known)


def test_every_key_of_a_rule(tmp_path: Path) -> None:
    known = known_to_the_reader(tmp_path, "[nodes.a]\n[policies.x]\nrules = [{nonsense = 1}]\n")
    assert [key.name for key in RULE.keys] == known == [field.name for field in fields(Rule)]


@pytest.mark.parametrize(("table", "key"), KEYS, ids=[f"{table.header}.{key.name}" for table, key in KEYS])
def test_each_example_alone_is_a_configuration(tmp_path: Path, table: Table, key: Key) -> None:
    known_policy = "[policies.night]\nrules = []\n" if table.example != "policies.night" else ""
    found = read(tmp_path, f"[nodes.alpha]\n{known_policy}[{table.example}]\n{key.name} = {key.example}\n")
    if table.header == "service" and key.name not in {"listen", "certificate", "key"}:
        Settings.of(found)


@pytest.mark.parametrize("table", [*TABLES, RULE], ids=lambda table: table.header)
def test_every_key_says_what_it_is_and_what_holds_without_it(table: Table) -> None:
    for key in table.keys:
        assert key.meaning.endswith(".")
        assert default_of(table, key)
        # A default in words stands only where the code has no value to show.
        if key.default and table.header in DEFAULTS and table is not RULE:
            assert getattr(DEFAULTS[table.header], key.name) is None


def test_the_example_is_a_configuration_as_it_stands_and_with_everything_set(tmp_path: Path) -> None:
    assert set(read(tmp_path, example()).nodes) == {"alpha", "beta"}
    everything = re.sub(r"^#(?! |$)", "", example(), flags=re.MULTILINE)
    whole = read(tmp_path, everything)
    assert set(whole.written) == {table.header.partition(".")[0] for table in TABLES}
    assert whole.nodes["beta"].drained == "new disks on Friday"
    assert whole.defaults.iallocator == "hail"
    assert Settings.of(whole).stop is Stop.HAND_OVER


def test_the_example_is_the_table_s() -> None:
    assert EXAMPLE.read_text(encoding="utf-8") == example()
    assert max(map(len, example().splitlines())) <= 100
