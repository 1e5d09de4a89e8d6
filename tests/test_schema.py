"""The schema refuses fields that do not go together."""

from __future__ import annotations

import pytest

from ameir_merlin.errors import UserError
from ameir_merlin.schema import Behaviour, FeatureSchema, Field, Label

FIELDS = (Field("item"), Field("shop"), Field("price", "dense"))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("shop", r"target field 'shop' has the table 'shop', expected the table 'item' of 'past'"),
        ("price", r"target field 'price' is dense, expected the table 'item' of 'past'"),
        ("user", r"no field 'user'; the fields are item, shop, price"),
    ],
)
def test_a_target_field_shares_the_table_of_its_history_field(target, message):
    past = (Field("past", embedding="item"),)
    assert FeatureSchema(FIELDS, Behaviour("clicks", past, ("item",), 5), Label("click")).has_target
    with pytest.raises(UserError, match=message):
        FeatureSchema(FIELDS, Behaviour("clicks", past, (target,), 5), Label("click"))


def test_times_are_for_clicks_and_have_a_name_of_their_own():
    past = Behaviour("clicks", (Field("past", embedding="item"),), (), 5, "when")
    assert FeatureSchema(FIELDS, past, Label("click")).times == "when"
    assert FeatureSchema(FIELDS, None, Label("click")).times == ""
    with pytest.raises(UserError, match="behaviour has times 'when', which are for clicks alone"):
        FeatureSchema((), past, Label("next", "retrieval", "item"))
    with pytest.raises(UserError, match="names used twice: price"):
        FeatureSchema(FIELDS, Behaviour("clicks", past.fields, (), 5, "price"), Label("click"))


def test_names_stand_once():
    with pytest.raises(UserError, match="names used twice: item"):
        FeatureSchema((Field("item"), Field("item")), None, Label("click"))


def test_what_is_predicted_is_the_first_of_a_behaviour():
    item, shop = Field("past", embedding="item"), Field("past_shop", embedding="shop")
    label = Label("item", "retrieval", "item")
    assert FeatureSchema((), Behaviour("bought", (item, shop), (), 5), label).label == label
    with pytest.raises(UserError, match="label 'item' is of table 'item': expected the first history field"):
        FeatureSchema((), Behaviour("bought", (shop, item), (), 5), label)
