"""The wire and the signed artifacts as types: parsed and checked before anything is constructed."""
