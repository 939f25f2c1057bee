"""What NumStore must answer, computed in the simplest way."""

import math
from collections import OrderedDict

import numstore_pb2
from conftest import numstore

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
CACHED_MAX = 10
FACTORIAL_OF_MAX = 20  # 21! does not fit in 64 bits


def set_num(server, key: str, value: int) -> int:
    return numstore(server).SetNum(numstore_pb2.SetNumRequest(key=key, value=value)).total


class Oracle:
    """What NumStore must answer, one request after the other. It adds up all numbers every time."""

    def __init__(self):
        self.numbers = {}
        self.cache = OrderedDict()  # number: factorial, the one used last at the end

    def set_num(self, key: str, value: int):
        """The total, or the error if the total would not fit."""
        total = sum({**self.numbers, key: value}.values())
        if INT64_MIN <= total <= INT64_MAX:
            self.numbers[key] = value
            return total
        return f'key "{key}": the total {total} would not fit in 64 bits'

    def fact(self, key: str) -> tuple:
        if key not in self.numbers:
            return 0, False, f'key "{key}" is not set'
        number = self.numbers[key]
        if number < 0:
            return 0, False, f'key "{key}": {number} has no factorial'
        if number > FACTORIAL_OF_MAX:
            return 0, False, f'key "{key}": the factorial of {number} does not fit in 64 bits'
        hit = number in self.cache
        self.cache[number] = math.factorial(number)
        self.cache.move_to_end(number)
        if len(self.cache) > CACHED_MAX:
            self.cache.popitem(last=False)
        return self.cache[number], hit, ""
