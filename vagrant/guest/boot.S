/*
 * Entry, descriptor tables' contents and interrupt entry points of the test guest (see guest.c).
 *
 * The multiboot loader (QEMU's -kernel) enters at `start` in 32-bit protected mode, paging off, interrupts
 * off, with the loader's magic in EAX and the address of its information in EBX. Its GDT is not ours to keep.
 */
#define MULTIBOOT_MAGIC 0x1BADB002
#define MULTIBOOT_FLAGS 0x00000003      /* page-aligned modules; memory size wanted */

        .section .multiboot, "a"
        .balign 4
        .long   MULTIBOOT_MAGIC
        .long   MULTIBOOT_FLAGS
        .long   -(MULTIBOOT_MAGIC + MULTIBOOT_FLAGS)

        .section .text
        .globl  start
start:
        cli
        cld
        movl    $stack_top, %esp
        lgdt    gdt_pointer
        ljmp    $0x08, $1f
1:      movw    $0x10, %cx
        movw    %cx, %ds
        movw    %cx, %es
        movw    %cx, %fs
        movw    %cx, %gs
        movw    %cx, %ss
        pushl   %ebx
        pushl   %eax
        call    guest_main
2:      cli
        hlt
        jmp     2b

/* Any of the sixteen lines of the interrupt controllers: which one does not matter, they only end a HLT. */
        .globl  interrupt_entry
interrupt_entry:
        pushal
        cld
        call    on_interrupt
        popal
        iret

/* Any processor exception is a defect of the guest: it says so and stops. */
        .globl  exception_entry
exception_entry:
        cld
        call    on_exception
        jmp     2b

        .section .rodata
        .balign 8
gdt:
        .quad   0
        .quad   0x00CF9A000000FFFF      /* 0x08: code, base 0, 4 GiB */
        .quad   0x00CF92000000FFFF      /* 0x10: data, base 0, 4 GiB */
gdt_pointer:
        .word   gdt_pointer - gdt - 1
        .long   gdt

        .section .bss
        .balign 16
        .skip   8192
stack_top:

        .section .note.GNU-stack, "", @progbits
