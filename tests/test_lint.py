"""lint finds what makes a series unfit, and says it in one line."""
import re

from support import Copy


class Lint(Copy):
    def findings(self):
        status, output = self.run_script('lint')
        lines = [ln for ln in output.splitlines()
                 if ln.startswith('lint: ') and not
                 re.match(r'lint: \d+ findings', ln)]
        self.assertNotIn('Traceback', output)
        return status, lines

    def check_finding(self, *words):
        status, lines = self.findings()
        self.assertEqual(status, 1)
        self.assertEqual(len(lines), 1, lines)
        for word in words:
            self.assertIn(word, lines[0])

    def last(self):
        """The last patch of the last topic: nothing comes after it."""
        return self.patches(self.topics()[-1])[-1]

    def test_series_is_fit(self):
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

    def test_subject_too_long(self):
        patch = self.last()
        text = patch.read_text(encoding='utf-8')
        area = 'migration/ram: '
        patch.write_text(re.sub(r'^Subject: .*(\n .*)*', 'Subject: [PATCH] '
                                + area + 'x' * (80 - len(area)), text, count=1,
                                flags=re.M), encoding='utf-8')
        self.check_finding(patch.name, '80 columns')

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
        cover = self.top / 'patches/xbzrle/0000-cover-letter.md'
        self.edit(cover, 'added, moved or deleted', 'whatever')
        status, lines = self.findings()
        self.assertEqual(status, 1)
        self.assertTrue(all('reason' in ln for ln in lines), lines)

    def test_topic_that_hides_a_need(self):
        self.edit(self.top / 'series', 'pays; needs: testbed', 'pays')
        self.check_finding('topic xbzrle', 'not on its own', 'does not apply')

    def test_no_cover_letter(self):
        (self.top / 'patches/xbzrle/0000-cover-letter.md').unlink()
        self.check_finding('patches/xbzrle', 'cover-letter')
