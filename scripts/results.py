"""Results in the one shape that all of docs/results has.

Imported by bench and demo, not a program.
SPDX-License-Identifier: GPL-2.0-or-later
"""
import datetime
import json
import operator
import os
import statistics
import subprocess

from qms import PATCHED, TOP, VERSION, git_out, say

OPERATORS = {'<=': operator.le, '>=': operator.ge, '==': operator.eq}


def number(value):
    return f'{value:.0f}' if abs(value) >= 100 else f'{value:.3g}'


def result_case(case, title, unit, better, stock, patched, goal=None,
                note=''):
    """One case; whether its goal was met is computed here and only here."""
    ratios = [b / a for a, b in zip(stock, patched) if a]
    ratio = {'median': statistics.median(ratios), 'min': min(ratios),
             'max': max(ratios)} if ratios else None
    met = None
    if goal:
        worst = max if goal['op'] == '<=' else min
        values = patched if goal['on'] == 'patched' else ratios
        value = worst(values) if goal['on'] == 'patched' else \
            statistics.median(values)
        met = OPERATORS[goal['op']](value, goal['value'])
    return {'case': case, 'title': title, 'unit': unit, 'better': better,
            'stock': stock, 'patched': patched, 'ratio': ratio, 'goal': goal,
            'met': met, 'note': note}


def write_results(topic, cases, command, folder, accel='none'):
    """TOPIC.json, TOPIC.md and, with matplotlib, TOPIC.png in a folder."""
    with open('/proc/cpuinfo', encoding='utf-8') as f:
        cpu = [ln.split(':', 1)[1].strip() for ln in f if 'model name' in ln]
    data = {'topic': topic, 'base': f'v{VERSION}',
            # the tree's id: it stays when a message is reworded
            'patched': git_out(PATCHED / 'src', 'rev-parse', 'HEAD^{tree}'),
            'date': datetime.date.today().isoformat(),
            'host': {'cpu': cpu[0] if cpu else 'unknown',
                     'cores': os.cpu_count(), 'kernel': os.uname().release,
                     'accel': accel},
            'command': command, 'cases': cases}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f'{topic}.json').write_text(json.dumps(data, indent=1) + '\n',
                                          encoding='utf-8')
    counts = [len(c['stock']) for c in cases]
    pairs = f'{min(counts)} to {max(counts)}' if min(counts) < max(counts) \
        else f'{counts[0]}'
    lines = [f'Written by `{command}`; medians of {pairs} '
             f'{"pairs" if max(counts) > 1 else "pair"}, ratio '
             'with its spread. '
             f'Every value: [{topic}.json]({topic}.json).', '',
             '| case | unit | stock | patched | ratio | goal | met |',
             '|---|---|--:|--:|--:|---|---|']
    for c in cases:
        ratio = '-'
        if c['ratio']:
            ratio = (f"{number(c['ratio']['median'])} "
                     f"({number(c['ratio']['min'])}-"
                     f"{number(c['ratio']['max'])})")
        goal = '-' if not c['goal'] else \
            f"{c['goal']['on']} {c['goal']['op']} {c['goal']['value']}"
        met = {None: '-', True: 'yes', False: '**no**'}[c['met']]
        lines.append(f"| {c['title']} | {c['unit']} "
                     f"| {number(statistics.median(c['stock']))} "
                     f"| {number(statistics.median(c['patched']))} "
                     f'| {ratio} | {goal} | {met} |')
    (folder / f'{topic}.md').write_text('\n'.join(lines) + '\n',
                                        encoding='utf-8')
    result = subprocess.run(
        [str(TOP / 'scripts/plot'), str(folder / f'{topic}.json'),
         str(folder / f'{topic}.png')], capture_output=True, text=True,
        check=False)
    say(f'wrote {folder / topic}.json, .md and .png' if not result.returncode
        else f'wrote {folder / topic}.json and .md; no picture: '
        + result.stderr.strip())
