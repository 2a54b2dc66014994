"""What can be declared: the types behind `defs.yaml`.

Text and numbers may be templates (`"{{ env.METRICS_AIRFLOW_URL }}"`), rendered as text and then
read as the key's type. Unknown keys are refused by name, however deep.
"""

from federation_defs.declaration.connection import (
    AuthDeclaration,
    BasicAuthDeclaration,
    ComposerAuthDeclaration,
    HttpDeclaration,
    MwaaAuthDeclaration,
    NoAuthDeclaration,
    PasswordAuthDeclaration,
    TlsDeclaration,
    TokenAuthDeclaration,
)
from federation_defs.declaration.dag import (
    DagDeclaration,
    PartitionsDeclaration,
    SuccessDeclaration,
    TriggerDeclaration,
)
from federation_defs.declaration.fields import suggest
from federation_defs.declaration.instance import (
    InstanceDeclaration,
    LimitsDeclaration,
    ObserveDeclaration,
    SelectDeclaration,
    parse_declaration,
)

__all__ = [
    "AuthDeclaration",
    "BasicAuthDeclaration",
    "ComposerAuthDeclaration",
    "DagDeclaration",
    "HttpDeclaration",
    "InstanceDeclaration",
    "LimitsDeclaration",
    "MwaaAuthDeclaration",
    "NoAuthDeclaration",
    "ObserveDeclaration",
    "PartitionsDeclaration",
    "PasswordAuthDeclaration",
    "SelectDeclaration",
    "SuccessDeclaration",
    "TlsDeclaration",
    "TokenAuthDeclaration",
    "TriggerDeclaration",
    "parse_declaration",
    "suggest",
]
