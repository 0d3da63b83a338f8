"""Expressions of billable metrics, such as ``round(event.properties.wh / 1000, 3)``.

Their grammar is a subset of Python's (ceil, floor, round, concat, least, greatest, the four
operators, ``event.timestamp|code|properties.x``), so Python's parser reads them and only the named
nodes are walked.
"""

from __future__ import annotations

import ast
import operator
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_UP, Decimal, DecimalException
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
ROUNDINGS = {"round": ROUND_HALF_UP, "ceil": ROUND_CEILING, "floor": ROUND_FLOOR}


class ExpressionError(ValueError):
    """What Lago puts after ``expression_evaluation_failed: ``."""


def evaluate(
    expression: str, *, code: str, timestamp_s: Decimal, properties: dict[str, Any]
) -> Decimal | str:
    """The value of an expression for one event.

    Raises:
        ExpressionError: a variable is missing, or the expression cannot be computed.
    """
    event = {"code": code, "timestamp": timestamp_s, "properties": properties}
    try:
        return _value(ast.parse(expression, mode="eval").body, event)
    except (SyntaxError, DecimalException, TypeError) as error:
        raise ExpressionError(str(error)) from None


def _value(node: ast.expr, event: dict[str, Any]) -> Decimal | str:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else Decimal(str(node.value))
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](_number(node.left, event), _number(node.right, event))  # type: ignore[no-any-return]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_number(node.operand, event)
    if isinstance(node, ast.Attribute):
        return _variable(node, event)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return _call(node.func.id, node.args, event)
    raise ExpressionError(f"cannot read {ast.unparse(node)}")


def _variable(node: ast.Attribute, event: dict[str, Any]) -> Decimal | str:
    path = ast.unparse(node).split(".")
    found: Any = event
    for name in path[1:]:
        if not isinstance(found, dict) or found.get(name) is None:
            raise ExpressionError(f"Variable: {path[-1]} not found")
        found = found[name]
    return found if isinstance(found, Decimal) else str(found)


def _number(node: ast.expr, event: dict[str, Any]) -> Decimal:
    return Decimal(_value(node, event))


def _call(name: str, arguments: list[ast.expr], event: dict[str, Any]) -> Decimal | str:
    if name == "concat":
        return "".join(str(_value(argument, event)) for argument in arguments)
    numbers = [_number(argument, event) for argument in arguments]
    if name == "least":
        return min(numbers)
    if name == "greatest":
        return max(numbers)
    if name not in ROUNDINGS or not numbers:
        raise ExpressionError(f"no function {name}")
    places = int(numbers[1]) if len(numbers) > 1 else 0
    return numbers[0].quantize(Decimal(1).scaleb(-places), rounding=ROUNDINGS[name])
