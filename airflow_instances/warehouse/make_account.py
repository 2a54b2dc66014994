"""Makes an account of this Airflow 2.11, or gives it a new password: both read from stdin, as JSON.

`airflow users create` leaves an account that is there already as it is, and shows the password to
whoever lists the machine's processes; `airflow users reset-password` fails (Flask-AppBuilder
provider 1.5.4: it looks the account up in one application and changes it in another).
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
    sys.exit(f"The account '{account['username']}' was not made; see above.")
