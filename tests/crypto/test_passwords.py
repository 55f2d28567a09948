from __future__ import annotations

from agent.crypto.passwords import check_password, derive_password


def test_the_password_of_a_user_is_pinned() -> None:
    assert derive_password(bytes(range(32)), "hub") == "1YH92gAbbGSXUBwGSgvAvFc9BIhwM8T_NwwTkoqIUtY"


def test_only_the_users_own_password_under_the_same_secret_fits() -> None:
    password = derive_password(b"secret", "hub")
    assert check_password(b"secret", "hub", password)
    assert not check_password(b"secret", "hub2", password)
    assert not check_password(b"other", "hub", password)
    assert not check_password(b"secret", "hub", "\ud800é")
