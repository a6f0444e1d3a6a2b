"""A dozen small programming problems with tests and solutions, so that `code` runs without data."""

from __future__ import annotations

PROBLEMS: tuple[tuple[str, list[str], str], ...] = (
    (
        "Write a function `clamp(value, low, high)` that returns value, but not less than low and not more than high.",
        [
            "assert clamp(5, 0, 10) == 5",
            "assert clamp(-3, 0, 10) == 0",
            "assert clamp(12, 0, 10) == 10",
            "assert clamp(2.5, 1, 2) == 2",
        ],
        "def clamp(value, low, high):\n    return max(low, min(value, high))",
    ),
    (
        "Write a function `is_leap(year)` that tells whether a year of the Gregorian calendar is a leap year.",
        [
            "assert is_leap(2024) is True",
            "assert is_leap(2023) is False",
            "assert is_leap(1900) is False",
            "assert is_leap(2000) is True",
        ],
        "def is_leap(year):\n    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)",
    ),
    (
        "Write a function `vowels(text)` that counts the letters a, e, i, o and u in a text, capitals too.",
        [
            "assert vowels('Education') == 5",
            "assert vowels('rhythm') == 0",
            "assert vowels('') == 0",
            "assert vowels('AIoU e') == 5",
        ],
        "def vowels(text):\n    return sum(letter in 'aeiou' for letter in text.lower())",
    ),
    (
        "Write a function `running_total(numbers)` that returns the list of sums of the first 1, 2, 3, ... numbers.",
        [
            "assert running_total([1, 2, 3]) == [1, 3, 6]",
            "assert running_total([]) == []",
            "assert running_total([5, -5, 2]) == [5, 0, 2]",
        ],
        "def running_total(numbers):\n    total, sums = 0, []\n    for number in numbers:\n        total += number\n"
        "        sums.append(total)\n    return sums",
    ),
    (
        "Write a function `second_largest(numbers)` that returns the second largest of the different numbers in a "
        "list, or None if there is none.",
        [
            "assert second_largest([3, 1, 2]) == 2",
            "assert second_largest([5, 5, 4]) == 4",
            "assert second_largest([7, 7]) is None",
            "assert second_largest([]) is None",
        ],
        "def second_largest(numbers):\n    different = sorted(set(numbers))\n"
        "    return different[-2] if len(different) > 1 else None",
    ),
    (
        "Write a function `is_palindrome(text)` that tells whether a text reads the same backwards, where only letters "
        "and digits count and capitals don't.",
        [
            "assert is_palindrome('Never odd or even') is True",
            "assert is_palindrome('abca') is False",
            "assert is_palindrome('') is True",
            "assert is_palindrome('1a-A1') is True",
        ],
        "def is_palindrome(text):\n    kept = [letter.lower() for letter in text if letter.isalnum()]\n"
        "    return kept == kept[::-1]",
    ),
    (
        "Write a function `digit_sum(number)` that returns the sum of the decimal digits of a whole number, whatever "
        "its sign.",
        [
            "assert digit_sum(123) == 6",
            "assert digit_sum(-45) == 9",
            "assert digit_sum(0) == 0",
            "assert digit_sum(10 ** 20) == 1",
        ],
        "def digit_sum(number):\n    return sum(int(digit) for digit in str(abs(number)))",
    ),
    (
        "Write a function `word_lengths(text)` that returns a dict from each word of a text, split at blanks, to its "
        "length.",
        [
            "assert word_lengths('one three') == {'one': 3, 'three': 5}",
            "assert word_lengths('') == {}",
            "assert word_lengths('a  a bb') == {'a': 1, 'bb': 2}",
        ],
        "def word_lengths(text):\n    return {word: len(word) for word in text.split()}",
    ),
    (
        "Write a function `chunks(items, size)` that cuts a list into lists of the given size; the last may be "
        "shorter.",
        [
            "assert chunks([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4], [5]]",
            "assert chunks([], 3) == []",
            "assert chunks(['a', 'b'], 5) == [['a', 'b']]",
        ],
        "def chunks(items, size):\n    return [items[start : start + size] for start in range(0, len(items), size)]",
    ),
    (
        "Write a function `common(first, second)` that returns the sorted list of the different items that two lists "
        "share.",
        [
            "assert common([3, 1, 2, 3], [3, 2, 5]) == [2, 3]",
            "assert common([], [1]) == []",
            "assert common(['b', 'a'], ['a', 'b', 'b']) == ['a', 'b']",
        ],
        "def common(first, second):\n    return sorted(set(first) & set(second))",
    ),
    (
        "Write a function `primes(limit)` that returns the list of prime numbers below limit.",
        [
            "assert primes(20) == [2, 3, 5, 7, 11, 13, 17, 19]",
            "assert primes(2) == []",
            "assert primes(3) == [2]",
            "assert len(primes(1000)) == 168",
        ],
        "def primes(limit):\n    found = []\n    for number in range(2, limit):\n"
        "        if all(number % prime for prime in found if prime * prime <= number):\n"
        "            found.append(number)\n    return found",
    ),
    (
        "Write a function `to_roman(number)` that writes a number from 1 to 3999 in Roman numerals.",
        [
            "assert to_roman(1) == 'I'",
            "assert to_roman(4) == 'IV'",
            "assert to_roman(1994) == 'MCMXCIV'",
            "assert to_roman(3999) == 'MMMCMXCIX'",
        ],
        "def to_roman(number):\n"
        "    values = [1000, 900, 500, 400, 100, 90, 50, 40, 10, 9, 5, 4, 1]\n"
        "    signs = 'M CM D CD C XC L XL X IX V IV I'.split()\n"
        "    text = ''\n    for value, sign in zip(values, signs):\n        text += sign * (number // value)\n"
        "        number %= value\n    return text",
    ),
)
"""Task, tests and a solution."""
