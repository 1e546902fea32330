# From the 32-bit entry that a PVH loader jumps to, to tiny_guest() in 64-bit mode; and the wait for the next timer
# interrupt. Where KVM is emulated there is no iret, and a repeated string instruction takes an age: neither is used.

        .section .note.pvh, "a", @note
        .long   4, 4, 18                # name bytes, descriptor bytes, XEN_ELFNOTE_PHYS32_ENTRY
        .asciz  "Xen"
        .long   pvh_entry

        .bss
        .balign 4096
level4: .skip   4096
level3: .skip   4096
        .globl  page_directories
page_directories:                       # 2 MiB pages, 4 GiB of them, each where it is
        .skip   4 * 4096
        .skip   16384
stack:
frame:  .skip   8                       # the stack pointer of who waits for an interrupt

        .data
        .balign 8
segments:                               # none, 64-bit code, data
        .quad   0, 0x00af9b000000ffff, 0x00cf93000000ffff
segments_register:
        .word   . - segments - 1
        .long   segments

        .text
        .code32
        .globl  pvh_entry
pvh_entry:                              # ebx: hvm_start_info
        cli
        cld
        movl    $page_directories, %edi
        movl    $0x83, %eax             # present, writable, large
fill:   movl    %eax, (%edi)
        addl    $8, %edi
        addl    $0x200000, %eax
        jnc     fill                    # until it has gone round
        movl    $level3 + 3, level4
        movl    $page_directories + 0x0003, level3
        movl    $page_directories + 0x1003, level3 + 8
        movl    $page_directories + 0x2003, level3 + 16
        movl    $page_directories + 0x3003, level3 + 24
        movl    %cr4, %eax
        orl     $0x20, %eax             # PAE
        movl    %eax, %cr4
        movl    $level4, %eax
        movl    %eax, %cr3
        movl    $0xc0000080, %ecx       # EFER
        rdmsr
        orl     $0x100, %eax            # LME
        wrmsr
        movl    %cr0, %eax
        orl     $0x80000000, %eax       # PG
        movl    %eax, %cr0
        lgdt    segments_register
        ljmp    $8, $long_mode

        .code64
long_mode:
        movl    $16, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
        movl    $stack, %esp
        movl    %ebx, %edi
        call    tiny_guest

        .globl  flush_tlb
flush_tlb:
        movq    %cr3, %rax
        movq    %rax, %cr3
        ret

# The interrupt's frame is dropped with the stack pointer, and its return address with it: instead of returning to the
# hlt, on_timer returns from here. A gate clears IF, so interrupts come in here only.
        .globl  wait_for_timer, on_timer
wait_for_timer:
        pushq   %rbx
        pushq   %rbp
        pushq   %r12
        pushq   %r13
        pushq   %r14
        pushq   %r15
        movq    %rsp, frame
        sti
1:      hlt
        jmp     1b
on_timer:
        movq    frame, %rsp
        popq    %r15
        popq    %r14
        popq    %r13
        popq    %r12
        popq    %rbp
        popq    %rbx
        ret

        .section .note.GNU-stack, "", @progbits
