"""What every ledger promises, checked on a real database. Inherited by each ledger's tests."""

from __future__ import annotations

from tests.contracts.ledger_claims_contract import LedgerClaimsContract
from tests.contracts.ledger_leases_contract import LedgerLeasesContract
from tests.contracts.ledger_writes_contract import LedgerWritesContract


class LedgerContract(LedgerClaimsContract, LedgerWritesContract, LedgerLeasesContract):
    """Inherit, and give a fixture `ledger`."""
