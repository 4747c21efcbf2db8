"""The API about operator tokens: /operator-tokens. Parses, calls, answers."""

from django.db.models import QuerySet
from django.http import Http404
from drf_spectacular.utils import extend_schema, extend_schema_view
from rest_framework import generics, serializers
from rest_framework.exceptions import PermissionDenied
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from fleet.operators import actions, queries
from fleet.operators.models import OperatorToken
from fleet.operators.scopes import Scope
from fleet.serializers import PageQuery, StrictSerializer, page_filters, validated

_ADMIN = {"GET": Scope.ADMIN, "POST": Scope.ADMIN}


class OperatorTokenRequest(StrictSerializer):
    """A new token."""

    name = serializers.CharField(max_length=100)
    scopes = serializers.ListField(child=serializers.ChoiceField([str(scope) for scope in Scope]), min_length=1)
    expires_at = serializers.DateTimeField(required=False, allow_null=True)


class OperatorTokenRow(serializers.ModelSerializer[OperatorToken]):
    """A token as it is known afterwards: by name and prefix."""

    scopes = serializers.ListField(child=serializers.CharField())

    class Meta:
        model = OperatorToken
        fields = [
            "id",
            "name",
            "prefix",
            "scopes",
            "created_by",
            "created_at",
            "expires_at",
            "last_used_at",
            "revoked_at",
        ]
        read_only_fields = fields


class NewOperatorToken(OperatorTokenRow):
    """The one answer that holds the token itself."""

    token = serializers.CharField()

    class Meta(OperatorTokenRow.Meta):
        fields = [*OperatorTokenRow.Meta.fields, "token"]
        read_only_fields = fields


@extend_schema_view(get=extend_schema(operation_id="list_operator_tokens", parameters=[PageQuery]))
class OperatorTokensView(generics.ListAPIView[OperatorToken]):
    """All tokens, newest first."""

    required_scopes = _ADMIN
    serializer_class = OperatorTokenRow

    def get_queryset(self) -> QuerySet[OperatorToken]:
        """All of them: revoked ones tell a story too."""
        page_filters(PageQuery, self.request)
        return queries.tokens()

    @extend_schema(
        operation_id="create_operator_token", request=OperatorTokenRequest, responses={201: NewOperatorToken}
    )
    def post(self, request: Request) -> Response:
        """Make a token. It is shown once; only its hash is kept."""
        wanted = validated(OperatorTokenRequest, request.data)
        token, secret = actions.create_token(created_by=str(request.user), **wanted)
        return Response(OperatorTokenRow(token).data | {"token": secret}, status=201)


class RevokeOperatorTokenView(APIView):
    """Ending a token."""

    required_scopes = _ADMIN

    @extend_schema(operation_id="revoke_operator_token", request=None, responses=OperatorTokenRow)
    def post(self, request: Request, token_id: int) -> Response:
        """Refuse the token from its next request on."""
        if request.auth == token_id:
            raise PermissionDenied("A token can't revoke itself: use another one.")
        token = queries.tokens().filter(pk=token_id).first()
        if token is None:
            raise Http404
        actions.revoke_token(token_id=token_id)
        token.refresh_from_db()
        return Response(OperatorTokenRow(token).data)
