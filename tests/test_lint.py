"""lint finds what makes a series unfit, and says it in one line."""
import re
import unittest

from support import Copy, Small


class Findings:
    def findings(self, *args):
        status, output = self.run_script('lint', *args)
        lines = [ln for ln in output.splitlines()
                 if ln.startswith('lint: ') and not
                 re.match(r'lint: \d+ findings', ln)]
        return status, lines

    def check_finding(self, *words, args=()):
        status, lines = self.findings(*args)
        self.assertEqual(status, 1)
        self.assertEqual(len(lines), 1, lines)
        for word in words:
            self.assertIn(word, lines[0])


class RealSeries(Findings, Copy):
    def test_series_is_fit(self):
        status, lines = self.findings()
        self.assertEqual(status, 0, lines)


class Lint(Findings, Small):
    def last(self):
        """The last patch of the last topic: nothing comes after it."""
        return self.patches(self.topics()[-1])[-1]

    def patch(self, topic, number=0):
        return self.patches(topic)[number]

    def test_small_series_is_fit(self):
        status, lines = self.findings()
        self.assertEqual(status, 0, lines)

    def test_patch_not_in_series(self):
        stray = self.last().with_name('0099-not-listed.patch')
        stray.write_bytes(self.last().read_bytes())
        self.check_finding('0099-not-listed.patch', 'not in series')

    def test_listed_patch_missing(self):
        name = self.last().name
        self.last().unlink()
        self.check_finding(name, 'no such patch')

    def test_patches_swapped(self):
        path = self.top / 'series'
        lines = path.read_text(encoding='utf-8').splitlines()
        i = max(n for n, ln in enumerate(lines)
                if ln.startswith(self.topics()[-1] + '/'))
        lines[i - 1], lines[i] = lines[i], lines[i - 1]
        path.write_text('\n'.join(lines) + '\n', encoding='utf-8')
        self.check_finding('out of order', lines[i - 1])

    def test_context_changed(self):
        patch = self.last()
        text = patch.read_text(encoding='utf-8')
        match = re.search(r'^\+\+\+ b/(\S+)\n@@[^\n]*\n( [^\n]{8,}\n)', text,
                          re.M)
        self.assertTrue(match)
        start, end = match.span(2)
        patch.write_text(text[:start] + match[2].rstrip('\n') + ' \n'
                         + text[end:], encoding='utf-8')
        self.check_finding(patch.name, 'does not apply', match[1])

    def test_trailing_blank_added(self):
        patch = self.last()
        text = patch.read_text(encoding='utf-8')
        match = re.search(r'^\+[^+\n].*\S$', text, re.M)
        patch.write_text(text.replace(match[0], match[0] + ' ', 1),
                         encoding='utf-8')
        self.check_finding(patch.name, 'blank at the end of a line')

    def subject(self, patch, new):
        """Another subject, in the patch and in the status table."""
        text = patch.read_text(encoding='utf-8')
        match = re.search(r'^Subject: \[PATCH\] (.*(?:\n .*)*)', text, re.M)
        patch.write_text(text.replace(match[0], f'Subject: [PATCH] {new}', 1),
                         encoding='utf-8')
        self.edit(self.top / 'MAINTAINERS-notes.md',
                  f'| {match[1]} |'.replace('\n', ''), f'| {new} |')

    def test_subject_too_long(self):
        area = 'migration/ram: '
        self.subject(self.last(), area + 'x' * (80 - len(area)))
        self.check_finding(self.last().name, '80 columns')

    def test_no_signed_off_by(self):
        patch = self.last()
        text = patch.read_text(encoding='utf-8')
        patch.write_text(re.sub(r'^Signed-off-by: .*\n', '', text,
                                flags=re.M), encoding='utf-8')
        self.check_finding(patch.name, 'no Signed-off-by')

    # Beyond these seven

    def test_offset_is_no_round_trip(self):
        patch = self.last()
        self.edit(patch, '@@ -', '@@ -9')
        status, lines = self.findings()
        self.assertEqual(status, 1)
        self.assertIn(patch.name, lines[0])

    def test_private_path(self):
        patch = self.last()
        self.edit(patch, '\nSigned-off-by: ',
                  f'\nSee {self.top}/notes.\n\nSigned-off-by: ')
        self.check_finding(patch.name, 'private machine')

    def test_checkpatch_error(self):
        # the last one with code in it
        for patch in reversed(self.patches(self.topics()[-1])):
            text = patch.read_text(encoding='utf-8')
            match = re.search(r'^\+    (\S.*;)$', text, re.M)
            if match:
                break
        patch.write_text(text.replace(match[0], '+\t' + match[1], 1),
                         encoding='utf-8')
        status, lines = self.findings()
        self.assertEqual(status, 1)
        self.assertTrue(any('checkpatch' in ln for ln in lines), lines)

    def test_checkpatch_warning_needs_a_reason(self):
        cover = self.top / 'patches/alpha/0000-cover-letter.md'
        self.edit(cover, 'line over 80', 'whatever')
        status, lines = self.findings()
        self.assertEqual(status, 1)
        self.assertTrue(all('reason' in ln for ln in lines), lines)

    def test_topic_that_hides_a_need(self):
        self.edit(self.top / 'series', 'first feature; needs: testbed fixes',
                  'first feature')
        self.check_finding('topic alpha', 'not on its own', 'does not apply')

    def test_no_cover_letter(self):
        (self.top / 'patches/alpha/0000-cover-letter.md').unlink()
        self.check_finding('patches/alpha', 'cover-letter')

    # Topics

    def test_needs_fixes(self):
        # the word stands for each of the topics, and only for them
        self.edit(self.top / 'series', 'repairs of one; needs: testbed',
                  'repairs of one; needs: fixes')
        status, output = self.run_script('lint', '--quick')
        self.assertEqual(status, 1)
        self.check_error(output, 'topic fixes-one needs fixes-one')
        text = (self.top / 'series').read_text(encoding='utf-8')
        text = text.replace('fixes-', 'mends-').replace(
            'one; needs: fixes', 'one; needs: testbed')
        (self.top / 'series').write_text(text, encoding='utf-8')
        status, output = self.run_script('lint', '--quick')
        self.check_error(output, 'topic alpha needs fixes, which does not')

    def test_sixteen_patches(self):
        text = self.last().read_text(encoding='utf-8')
        notes = (self.top / 'MAINTAINERS-notes.md')
        for n in range(3, 17):
            new = self.last().with_name(f'{n:04}-more.patch')
            new.write_text(text.replace('add up the steps', f'add {n}'),
                           encoding='utf-8')
            self.edit(notes, '| migration/two: add up the steps | own |\n',
                      '| migration/two: add up the steps | own |\n'
                      f'| migration/two: add {n} | own |\n')
            with open(self.top / 'series', 'a', encoding='utf-8') as f:
                f.write(f'beta/{new.name}\n')
            if n == 15:
                self.assertEqual(self.findings('--quick')[0], 0)
        self.check_finding('topic beta has 16 patches, 15', args=['--quick'])

    # Repairs and their tests

    def test_form_of_fixes(self):
        good = 'Fixes: 0123456789ab ("migration: add one")'
        for bad in ('Fixes: 0123456 ("migration: add one")',
                    'Fixes: 0123456789ab',
                    'Fixes: 0123456789ab (migration: add one)',
                    'fixes: 0123456789ab ("migration: add one")',
                    'Fixes: 0123456789abc ("migration: add one")'):
            with self.subTest(tag=bad):
                self.edit(self.patch('fixes-two'), good, bad)
                lines = self.findings('--quick')[1]
                self.assertIn(f'is not Fixes: <12 digits> ("subject"): {bad}',
                              lines[0])
                self.edit(self.patch('fixes-two'), bad, good)
        # in every topic; and it may be as long as the subject is
        self.edit(self.last(), '\nSigned', f'\n{good[:-2]} {"x" * 60}")\nSigned')
        self.assertEqual(self.findings('--quick')[0], 0)
        self.edit(self.last(), '0123456789ab', '0123')
        self.check_finding(self.last().name, 'Fixes:', args=['--quick'])

    def test_repair_without_fixes(self):
        self.edit(self.patch('fixes-one'), 'Fixes: ', 'Mends: ')
        self.check_finding(self.patch('fixes-one').name, 'no Fixes: tag',
                           args=['--quick'])

    def test_repair_with_a_test_in_it(self):
        patch = self.patch('fixes-one')
        text = patch.read_text(encoding='utf-8')
        diff = re.search(r'^diff --git .*', text, re.M | re.S)[0]
        patch.write_text(text + diff.replace('migration/one.c',
                                             'tests/unit/one.c'),
                         encoding='utf-8')
        self.check_finding(patch.name, 'changes code and a test '
                           '(tests/unit/one.c)', args=['--quick'])

    def test_repair_without_a_test(self):
        # what comes after it touches documentation only
        test = self.patch('fixes-one', 1)
        text = test.read_text(encoding='utf-8')
        test.write_text(text.replace('tests/qtest/migration/one.c',
                                     'docs/devel/migration/two.c'),
                        encoding='utf-8')
        self.check_finding(self.patch('fixes-one').name,
                           'no later patch of its topic is its test',
                           args=['--quick'])
        self.edit(self.patch('fixes-one'), '\nFixes:',
                  '\nNo test: it takes luck.\n\nFixes:')
        self.assertEqual(self.findings('--quick')[0], 0)

    def test_no_test_needs_a_reason(self):
        self.edit(self.patch('fixes-two'),
                  'No test: it takes a machine of another kind.', 'No test:')
        self.check_finding(self.patch('fixes-two').name, 'No test',
                           args=['--quick'])

    def test_one_test_for_two_repairs(self):
        # each has its own: the second one follows, and nothing follows it
        patch = self.patch('fixes-one')
        second = patch.with_name('0003-second.patch')
        second.write_text(patch.read_text(encoding='utf-8').replace(
            'lose a step', 'lose two'), encoding='utf-8')
        test = self.patch('fixes-one', 1)
        self.edit(self.top / 'series', f'fixes-one/{test.name}\n',
                  f'fixes-one/{test.name}\nfixes-one/{second.name}\n')
        self.edit(self.top / 'MAINTAINERS-notes.md',
                  '| migration/one: do not lose a step | own |',
                  '| migration/one: do not lose a step | own |\n'
                  '| migration/one: do not lose two | own |')
        self.check_finding(second.name, 'is its test', args=['--quick'])

    # QAPI

    def test_since(self):
        patch = self.patch('alpha', 1)
        for old, new in (('since 11.2', 'since 11.1'),
                         ('since 11.1', 'Since: 10.2')):
            self.edit(patch, old, new)
            self.check_finding(patch.name, 'is since 11.2, not ' + new[-4:],
                               args=['--quick'])

    def test_since_of_what_was_there(self):
        # lines that change or move stay since what they were
        patch = self.patch('alpha', 1)
        self.edit(patch, ' # @old: as before (since 1.2)\n',
                  '-# @old: as before (since 1.2)\n'
                  '+# @old: as it was (since 1.2)\n')
        self.assertEqual(self.findings('--quick')[0], 0)
        self.edit(patch, '-# @old: as before (since 1.2)',
                  '-# @old: as before')
        self.check_finding(patch.name, 'not 1.2', args=['--quick'])

    # Names

    def test_numbers(self):
        files = {'README.md': (False, 'README.md:3'),
                 'MAINTAINERS-notes.md': (True, None),
                 'docs/steps.md': (False, 'docs/steps.md:3'),
                 'patches/alpha/0000-cover-letter.md': (True, None)}
        always = ['alpha/0002', 'patch 7', 'patches 3 to 5', 'Patches 3,\n5',
                  'patch #2', 'patch number 12']
        for name, (letter, where) in files.items():
            path = self.top / name
            before = path.read_text(encoding='utf-8')
            for text in (*always, *(('for 0002', 'slow (2 to 5)', 'late (7)')
                                    if letter else ())):
                with self.subTest(file=name, text=text):
                    path.write_text(f'{before}\nAs in {text}, so.\n',
                                    encoding='utf-8')
                    self.check_finding(where or name, 'by number',
                                       args=['--quick'])
            for text in ('patches/alpha/0000-cover-letter.md', 'the 79 patches',
                         'userfaultfd(2)', 'patch 2.6', 'the next patch',
                         'date 2026/0101', 'mode 0644'):
                with self.subTest(file=name, text=text):
                    path.write_text(f'{before}\nAs in {text}, so.\n',
                                    encoding='utf-8')
                    self.assertEqual(self.findings('--quick'),
                                     (0, ['lint: 8 patches in 5 topics are '
                                          'fit']))
            path.write_text(before, encoding='utf-8')

    def test_number_in_a_message(self):
        self.edit(self.last(), 'There was no such step.',
                  'Patch 1 has no such step.')
        self.check_finding(self.last().name, 'by number', 'Patch 1',
                           args=['--quick'])

    def test_quoted_subject(self):
        path = self.top / 'patches/alpha/0000-cover-letter.md'
        before = path.read_text(encoding='utf-8')
        for good in ('"migration/one:\ngo faster"',
                     '0123456789ab ("migration/one: an upstream commit")',
                     '"go slower"', '"error: migration/one: go"'):
            path.write_text(f'{before}\nSee {good}.\n', encoding='utf-8')
            self.assertEqual(self.findings('--quick')[0], 0, good)
        path.write_text(f'{before}\nSee "migration/one:\ngo slower".\n',
                        encoding='utf-8')
        self.check_finding('no patch has the subject '
                           '"migration/one: go slower"', args=['--quick'])

    # The status table

    def test_status_row_missing(self):
        self.edit(self.top / 'MAINTAINERS-notes.md',
                  '| migration/one: go faster | own |\n', '')
        self.check_finding('a patch without a row, below "### alpha": '
                           'migration/one: go faster', args=['--quick'])
        # and the row to put there
        status, output = self.run_script('lint', '--status')
        self.assertEqual(status, 1)
        self.assertIn('\n| migration/one: go faster | own |\n', output)

    def test_status_row_too_many(self):
        notes = self.top / 'MAINTAINERS-notes.md'
        row = '| migration/one: go faster | own |\n'
        self.edit(notes, row, row + row)
        self.check_finding('2 rows below "### alpha"', args=['--quick'])
        self.edit(notes, row + row, row + row.replace('faster', 'slower'))
        self.check_finding('a row without a patch', 'go slower',
                           args=['--quick'])
        # one in another topic's table is missing, and too many
        self.edit(notes, row + row.replace('faster', 'slower'), '')
        self.edit(notes, '### beta\n\n| patch | status |\n|---|---|\n',
                  '### beta\n\n| patch | status |\n|---|---|\n' + row)
        self.assertEqual(len(self.findings('--quick')[1]), 2)
        self.assertEqual(len(self.findings('--status')[1]), 2)

    def test_status_of_a_patch(self):
        notes = self.top / 'MAINTAINERS-notes.md'
        row = '| migration/one: go faster | %s |\n'
        old = 'own'
        for status in ('own; can be taken alone', 'posted',
                       'posted https://lore.example/1',
                       'merged as 0123456789ab; the next rebase drops it'):
            self.edit(notes, row % old, row % status)
            old = status
            self.assertEqual(self.findings('--status')[0], 0, status)
        for status in ('', 'owned', 'merged', 'done', 'own | yes'):
            self.edit(notes, row % old, row % status)
            old = status
            self.check_finding('a status is own', args=['--status'])

    def test_no_notes(self):
        (self.top / 'MAINTAINERS-notes.md').unlink()
        self.check_finding('MAINTAINERS-notes.md', 'is not there',
                           args=['--quick'])


if __name__ == '__main__':
    unittest.main()
