"""What people type: an order for enrolment tokens, and a rollout."""

from datetime import timedelta
from typing import Any

from django import forms

from fleet.devices import queries as devices
from fleet.rollouts.targets import Request
from registry import queries as registry
from registry.models import ArtifactKind, ReleaseState

_TAG = r"^[a-z0-9][a-z0-9_.-]*$"
_LIFETIMES = ((3600, "1 hour"), (86_400, "1 day"), (7 * 86_400, "7 days"), (30 * 86_400, "30 days"))
_MAX_TOKENS = 100


class WordsField(forms.CharField):
    """Several names in one line, set apart by blanks or commas."""

    def clean(self, value: Any) -> list[str]:
        """The names; each must look like one."""
        words = str(super().clean(value)).replace(",", " ").split()
        check = forms.RegexField(regex=self.pattern, error_messages={"invalid": "Use a-z, 0-9, dash, dot, underscore."})
        return [check.clean(word) for word in words]

    def __init__(self, *, pattern: str = _TAG, **kwargs: Any) -> None:
        super().__init__(required=False, max_length=2000, **kwargs)
        self.pattern = pattern


class EnrolForm(forms.Form):
    """How many tokens, and what the devices that use them become part of."""

    count = forms.IntegerField(min_value=1, max_value=_MAX_TOKENS, initial=1, label="Devices")
    group = forms.ChoiceField(required=False)
    tags = WordsField(help_text="Set apart by blanks.")
    lifetime_s = forms.TypedChoiceField(choices=_LIFETIMES, coerce=int, initial=7 * 86_400, label="Valid for")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["group"].choices = [("", "No group"), *((g.name, g.name) for g in devices.groups())]

    @property
    def order(self) -> dict[str, Any]:
        """Arguments of `create_enrolment_tokens`, of a valid form."""
        cleaned = self.cleaned_data
        return {
            "count": cleaned["count"],
            "group": cleaned["group"] or None,
            "tags": cleaned["tags"],
            "lifetime": timedelta(seconds=cleaned["lifetime_s"]),
        }


class RolloutForm(forms.Form):
    """A change and whom it is for. Whether it can be carried out is for the rollouts to say."""

    name = forms.CharField(max_length=100, required=False)
    base = forms.ChoiceField(required=False, label="Base model")
    adapters = forms.MultipleChoiceField(required=False, widget=forms.CheckboxSelectMultiple)
    remove = WordsField(label="Remove adapters", help_text="Names of adapters to take off the devices, if any.")
    groups = forms.MultipleChoiceField(required=False, widget=forms.CheckboxSelectMultiple)
    tags = WordsField(help_text="Devices with any of these tags. Set apart by blanks.")
    devices = WordsField(label="Single devices", help_text="Ids of further devices. Set apart by blanks.")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        published = list(registry.releases(state=ReleaseState.PUBLISHED))
        bases = [(r.ref, r.ref) for r in published if r.kind == ArtifactKind.BASE]
        adapters = [(r.ref, f"{r.ref} · for {r.base.ref}") for r in published if r.base]
        self.fields["base"].choices = [("", "Keep what each device has"), *bases]
        self.fields["adapters"].choices = sorted(adapters)
        self.fields["groups"].choices = [(g.name, f"{g.name} · {g.num_devices} devices") for g in devices.groups()]

    @property
    def request(self) -> Request:
        """What the operator asks for, of a valid form."""
        return Request(**self.cleaned_data | {"base": self.cleaned_data["base"] or None})
