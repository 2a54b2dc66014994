"""Create an account of this Airflow 2.11, or set its password. Reads both from stdin as JSON.

`airflow users create` does not change an existing account, and shows the password in the machine's
process list. `airflow users reset-password` fails, because it finds the account in one application
and changes it in another (Flask-AppBuilder provider 1.5.4).
"""

from __future__ import annotations

import json
import sys

from airflow.providers.fab.auth_manager.cli_commands.utils import get_application_builder

account = json.load(sys.stdin)
with get_application_builder() as builder:
    security = builder.sm
    user = security.find_user(username=account["username"])
    if user is None:
        user = security.add_user(
            username=account["username"],
            password=account["password"],
            first_name="Demo",
            last_name="Account",
            email=f"{account['username']}@example.com",
            role=security.find_role("Admin"),
        )
        done = bool(user)
    else:
        done = security.reset_password(user.id, account["password"])
if not done:
    sys.exit(f"The account '{account['username']}' was not created, see above.")
