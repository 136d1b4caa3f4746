/*
 * A guest that only has memory, for scripts/bench snapshot.
 *
 * It fills its memory, a page at a time with the page's address at both of
 * the page's ends, and says so.  Then it idles, or it writes a byte into every
 * page of a range in turn, for ever, as fast as it can or at a rate.  What it
 * has to do is loaded to PARAMS before the start, as a row of 64-bit numbers;
 * what it has done is to be read at STATUS, which has a page of its own.
 *
 * Multiboot, then long mode with all of the first 32 GiB mapped one to one.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
        .set    PARAMS, 0x200000
        .set    P_FILL1, PARAMS + 0     /* from, to: below the PCI hole */
        .set    P_FILL2, PARAMS + 16    /* from, to: above 4 GiB */
        .set    P_WRITE, PARAMS + 32    /* from, to; both 0: idle */
        .set    P_RATE, PARAMS + 48     /* pages per second, 0: no limit */

        .set    STATUS, 0x201000
        .set    S_READY, STATUS + 0     /* 1 when all is filled */
        .set    S_WRITTEN, STATUS + 8   /* pages written since */
        .set    S_TSC_HZ, STATUS + 16

        .set    PAGE, 4096
        .set    GIB, 32                 /* mapped */
        .set    PM_TIMER, 0x608         /* where SeaBIOS puts it */
        .set    PM_HZ, 3579545

        .section .multiboot, "a"
        .balign 4
        .long   0x1badb002, 0, -0x1badb002

        .text
        .code32
        .globl  _start
_start: cli
        cld
        mov     $stack_end, %esp
        movl    $pdpt + 3, pml4
        /* a 1 GiB directory each */
        mov     $pdpt, %edi
        mov     $pds + 3, %eax
        mov     $GIB, %ecx
1:      mov     %eax, (%edi)
        add     $PAGE, %eax
        add     $8, %edi
        loop    1b
        /* 2 MiB pages; edx:eax counts addresses */
        mov     $pds, %edi
        mov     $0x83, %eax
        xor     %edx, %edx
        mov     $GIB * 512, %ecx
1:      mov     %eax, (%edi)
        mov     %edx, 4(%edi)
        add     $0x200000, %eax
        adc     $0, %edx
        add     $8, %edi
        loop    1b

        mov     %cr4, %eax
        or      $0x20, %eax             /* PAE */
        mov     %eax, %cr4
        mov     $pml4, %eax
        mov     %eax, %cr3
        mov     $0xc0000080, %ecx       /* EFER.LME */
        rdmsr
        or      $0x100, %eax
        wrmsr
        mov     %cr0, %eax
        or      $0x80000000, %eax
        mov     %eax, %cr0
        lgdt    gdt_pointer
        ljmp    $8, $long_mode

        .code64
long_mode:
        mov     $16, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss

        /* How fast is the TSC?  Count for a tenth of a second. */
        mov     $PM_TIMER, %edx
        in      %dx, %eax
        mov     %eax, %ebx
        call    read_tsc
        mov     %rax, %r8
1:      mov     $PM_TIMER, %edx
        in      %dx, %eax
        sub     %ebx, %eax
        and     $0xffffff, %eax         /* it has 24 bits */
        cmp     $PM_HZ / 10, %eax
        jb      1b
        mov     %eax, %ecx
        call    read_tsc
        sub     %r8, %rax
        mov     $PM_HZ, %edx
        mul     %rdx
        div     %rcx
        mov     %rax, S_TSC_HZ
        mov     %rax, %r14

        mov     P_FILL1, %rsi
        mov     P_FILL1 + 8, %rdi
        call    fill
        mov     P_FILL2, %rsi
        mov     P_FILL2 + 8, %rdi
        call    fill

        /* TSC ticks per page, and how far behind is too far to catch up */
        xor     %r13d, %r13d
        mov     P_RATE, %rcx
        test    %rcx, %rcx
        jz      1f
        mov     %r14, %rax
        xor     %edx, %edx
        div     %rcx
        mov     %rax, %r13
1:      mov     %r14, %rax
        xor     %edx, %edx
        mov     $100, %ecx
        div     %rcx
        mov     %rax, %r14

        movq    $1, S_READY
        mov     P_WRITE, %rbx
        mov     P_WRITE + 8, %rdi
        cmp     %rbx, %rdi
        jbe     idle
        call    read_tsc
        mov     %rax, %r12
again:  mov     %rbx, %rsi
write:  incb    (%rsi)
        incq    S_WRITTEN
        add     $PAGE, %rsi
        test    %r13, %r13
        jz      3f
        /* Wait for this page's time; what was lost in a long wait is lost */
        add     %r13, %r12
1:      call    read_tsc
        cmp     %r12, %rax
        jb      1b
        sub     %r14, %rax
        cmp     %rax, %r12
        jae     3f
        mov     %rax, %r12
3:      cmp     %rdi, %rsi
        jb      write
        jmp     again

idle:   hlt
        jmp     idle

fill:   cmp     %rdi, %rsi
        jae     1f
        lea     1(%rsi), %rax
        mov     %rax, (%rsi)
        mov     %rax, PAGE - 8(%rsi)
        add     $PAGE, %rsi
        jmp     fill
1:      ret

read_tsc:
        rdtsc
        shl     $32, %rdx
        or      %rdx, %rax
        ret

        .balign 8
gdt:    .quad   0, 0x00af9a000000ffff, 0x00cf92000000ffff
gdt_pointer:
        .word   . - gdt - 1
        .long   gdt

        .bss
        .balign PAGE
pml4:   .skip   PAGE
pdpt:   .skip   PAGE
pds:    .skip   GIB * PAGE
        .skip   PAGE
stack_end:
