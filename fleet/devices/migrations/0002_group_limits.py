from typing import Any

from django.db import migrations, models
from django.db.models import F


def set_revisions(apps: Any, _schema_editor: Any) -> None:
    """Until now every revision brought a set."""
    apps.get_model("devices", "DesiredRecord").objects.update(set_revision=F("revision"))


class Migration(migrations.Migration):
    dependencies = [("devices", "0001_initial")]

    operations = [
        migrations.AddField(model_name="desiredrecord", name="limits", field=models.JSONField(default=dict)),
        migrations.AddField(
            model_name="desiredrecord", name="set_revision", field=models.PositiveBigIntegerField(default=0)
        ),
        migrations.AddField(model_name="devicegroup", name="limits", field=models.JSONField(default=dict)),
        migrations.AddField(
            model_name="devicegroup", name="limits_applied", field=models.PositiveIntegerField(default=0)
        ),
        migrations.AddField(
            model_name="devicegroup", name="limits_version", field=models.PositiveIntegerField(default=0)
        ),
        migrations.RunPython(set_revisions, migrations.RunPython.noop, elidable=True),
    ]
