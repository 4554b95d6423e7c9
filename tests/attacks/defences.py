"""Every check that stands between a lie and this host, as the text to take out and the tests that must notice."""

from __future__ import annotations

from tests.attacks import artifact_defences, host_defences, local_defences, reader_defences, wire_defences

DEFENCES = (
    *artifact_defences.DEFENCES,
    *reader_defences.DEFENCES,
    *wire_defences.DEFENCES,
    *host_defences.DEFENCES,
    *local_defences.DEFENCES,
)
