/*
 * The test guest: a program without an operating system that proves what a live migration did to it.
 *
 * It writes numbered, checksummed records to its disks, announces each on the serial port once the disk has
 * acknowledged it, and meanwhile stamps and verifies pages of its memory. Whoever holds the disk images and
 * has listened to the serial port can tell a lost write, a torn write, a lost page and the length of a stop
 * (records.py does).
 *
 * Machine: QEMU `pc` (i440fx) with 24 MiB or more, one or two virtio-blk disks on PCI bus 0 (transitional, as
 * `<target bus='virtio'/>` makes them), COM1; a virtio balloon, if there is one. Started by `-kernel guest.elf -append "..."`:
 *
 *     name=NAME      the guest's name, up to 31 bytes; held in every record              (guest)
 *     record_ms=MS   a record each so many milliseconds, or as fast as the disks allow   (20)
 *     mib=N          stamp an area of N MiB; 0: none; no more than the memory holds      (8)
 *     rate=PAGES     stamp so many pages of it a second                                  (500)
 *
 * A record is one sector. Record n is at sector n modulo the number of sectors, on every disk; it goes to disk
 * 0, and to disk 1 when disk 0 has acknowledged it. All numbers are little-endian:
 *
 *     offset  bytes  what
 *          0      8  magic, "lvmgrec" and 0x1a
 *          8      2  version of this format: 1
 *         10      2  disk number, from 0
 *         12      2  number of disks
 *         14      2  0
 *         16      8  run: when the guest started, in seconds since 1970, by its clock chip; but always more than
 *                    the run found on its disks, so that a later run is the larger though a host's clock be slow
 *         24      8  n: number of the record, from 0 in each run
 *         32      8  milliseconds since the start of the run by the guest's own clock. It stands still while the
 *                    machine is stopped, and loses 4.69 s when the processor gets no turn for longer than that
 *         40      8  pages verified in this run
 *         48      8  bad pages among them
 *         56      4  pass over the memory that is under way, from 0; each page is verified from pass 1 on
 *         60      4  index of the first bad page; 0xffffffff: none
 *         64      4  pass in which it was found
 *         68      4  requests that a disk answered with an error; they were repeated
 *         72      4  record_ms
 *         76      4  mib, as used
 *         80      4  rate
 *         84      4  0
 *         88      8  number of sectors of this disk
 *         96     32  name, padded with zeros
 *        128    380  payload: depends on run, n and disk, so that no two records have a part in common
 *        508      4  CRC-32 (as in zlib) of the 508 bytes before
 *
 * On the serial port each line ends in the sum of its bytes before the last blank, modulo 256, as two hexadecimal
 * digits: QEMU sends each byte in a datagram of its own when the port is a UDP one, and a byte may be lost.
 *
 *     B <run> <disks> <mib> <rate> <record_ms> <sum>     started
 *     R <run> <n> <pass> <bad> <sum>                     every disk has acknowledged (and flushed) record n
 *     S <run> <records> <sum>                            shut down by the power button
 *     E <text> <sum>                                     it cannot go on (or not quite as asked), and why
 */
#include <stddef.h>
#include <stdint.h>

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

enum {
    SECTOR = 512,
    PAGE = 4096,
    MAX_DISKS = 2,
    NAME_BYTES = 32,
    TICKS_PER_SECOND = 100,     /* how often HLT ends: the resolution of everything that is due at a time */
    PAGES_AT_ONCE = 32,         /* between two looks at the disks, so that a high rate does not starve them */
    RETRY_MS = 20,              /* after a request that failed */
    FAREWELL_MS = 200,          /* how long a shutdown waits for the serial port */
};

#define NO_PAGE 0xffffffffu

/* ---- processor ---- */

static inline void outb(uint16_t port, uint8_t value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline void outw(uint16_t port, uint16_t value)
{
    __asm__ volatile("outw %0, %1" : : "a"(value), "Nd"(port));
}

static inline void outl(uint16_t port, uint32_t value)
{
    __asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port));
}

static inline uint8_t inb(uint16_t port)
{
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline uint16_t inw(uint16_t port)
{
    uint16_t value;
    __asm__ volatile("inw %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline uint32_t inl(uint16_t port)
{
    uint32_t value;
    __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

/* Interrupts are taken only inside this function. One that was raised before ends the HLT at once. */
static void wait_for_interrupt(void)
{
    __asm__ volatile("sti; hlt; cli" : : : "memory");
}

static void memory_barrier(void)
{
    __sync_synchronize();
}

/* The compiler may call these four whatever the flags. */
void *memcpy(void *to, const void *from, size_t size)
{
    uint8_t *t = to;
    const uint8_t *f = from;
    while (size--)
        *t++ = *f++;
    return to;
}

void *memset(void *to, int value, size_t size)
{
    uint8_t *t = to;
    while (size--)
        *t++ = (uint8_t)value;
    return to;
}

void *memmove(void *to, const void *from, size_t size)
{
    uint8_t *t = to;
    const uint8_t *f = from;
    if (t <= f)
        return memcpy(to, from, size);
    while (size--)
        t[size] = f[size];
    return to;
}

int memcmp(const void *a, const void *b, size_t size)
{
    const uint8_t *x = a, *y = b;
    for (; size--; x++, y++)
        if (*x != *y)
            return *x - *y;
    return 0;
}

/* ---- serial port ----
 *
 * A line is put into a buffer whole, or dropped whole when there is no room; the main loop gives the port what it
 * takes. So nothing ever waits for a port that nobody reads.
 */

enum {
    COM1 = 0x3f8,
    UART_DATA = 0,
    UART_INTERRUPTS = 1,
    UART_FIFO = 2,
    UART_LINE = 3,
    UART_MODEM = 4,
    UART_STATUS = 5,
    UART_ROOM = 0x20,           /* in UART_STATUS: another byte may be written */
    SERIAL_BUFFER = 1024,
    LINE_BYTES = 128,
};

static char serial_buffer[SERIAL_BUFFER];
static uint32_t serial_in, serial_out;      /* bytes ever put in and taken out */

struct line {
    char text[LINE_BYTES];
    uint32_t length;
};

static void serial_init(void)
{
    outb(COM1 + UART_INTERRUPTS, 0);
    outb(COM1 + UART_LINE, 0x80);           /* divisor latch: 115200 baud */
    outb(COM1 + UART_DATA, 1);
    outb(COM1 + UART_INTERRUPTS, 0);
    outb(COM1 + UART_LINE, 0x03);           /* 8N1 */
    outb(COM1 + UART_FIFO, 0x07);
    outb(COM1 + UART_MODEM, 0x03);
}

/* Gives the port what it takes now. Returns whether something is left. */
static int serial_pump(void)
{
    while (serial_out != serial_in) {
        if (!(inb(COM1 + UART_STATUS) & UART_ROOM))
            return 1;
        outb(COM1 + UART_DATA, (uint8_t)serial_buffer[serial_out++ % SERIAL_BUFFER]);
    }
    return 0;
}

static void put_char(struct line *line, char c)
{
    if (line->length < LINE_BYTES)
        line->text[line->length++] = c;
}

static void put_text(struct line *line, const char *text)
{
    while (*text)
        put_char(line, *text++);
}

static void put_number(struct line *line, uint32_t value)
{
    char digits[10];
    uint32_t count = 0;
    do
        digits[count++] = (char)('0' + value % 10);
    while (value /= 10);
    while (count)
        put_char(line, digits[--count]);
}

static void put_field(struct line *line, uint32_t value)
{
    put_char(line, ' ');
    put_number(line, value);
}

static void send_line(struct line *line)
{
    static const char hex[] = "0123456789abcdef";
    uint8_t sum = 0;
    for (uint32_t i = 0; i < line->length; i++)
        sum += (uint8_t)line->text[i];
    put_char(line, ' ');
    put_char(line, hex[sum >> 4]);
    put_char(line, hex[sum & 15]);
    put_char(line, '\n');
    if (SERIAL_BUFFER - (serial_in - serial_out) < line->length)
        return;
    for (uint32_t i = 0; i < line->length; i++)
        serial_buffer[serial_in++ % SERIAL_BUFFER] = line->text[i];
    serial_pump();
}

static void complain(const char *text)
{
    struct line line = { .length = 0 };
    put_text(&line, "E ");
    put_text(&line, text);
    send_line(&line);
}

static _Noreturn void panic(const char *text)
{
    complain(text);
    while (serial_pump())
        ;
    for (;;)
        __asm__ volatile("cli; hlt");
}

/* ---- PCI ---- */

enum {
    PCI_ADDRESS = 0xcf8,
    PCI_DATA = 0xcfc,
    PCI_ID = 0x00,
    PCI_COMMAND = 0x04,
    PCI_HEADER = 0x0c,
    PCI_BAR0 = 0x10,
    PCI_LINE = 0x3c,
    PCI_IO_AND_MASTER = 0x05,
    PCI_MULTIFUNCTION = 0x800000,
};

static uint32_t pci_read(uint32_t function, uint32_t offset)
{
    outl(PCI_ADDRESS, 0x80000000u | function << 8 | offset);
    return inl(PCI_DATA);
}

static void pci_write(uint32_t function, uint32_t offset, uint32_t value)
{
    outl(PCI_ADDRESS, 0x80000000u | function << 8 | offset);
    outl(PCI_DATA, value);
}

/* Calls `found` for every function on bus 0, in the order of the slots. */
static void pci_scan(void (*found)(uint32_t function, uint32_t id))
{
    for (uint32_t function = 0; function < 256; function++) {
        uint32_t first = function & ~7u;
        if (function != first && !(pci_read(first, PCI_HEADER) & PCI_MULTIFUNCTION))
            continue;
        uint32_t id = pci_read(function, PCI_ID);
        if (id != 0xffffffffu)
            found(function, id);
    }
}

/* ---- ACPI power management: the clock, the power button, power off ---- */

enum {
    PIIX4_PM = 0x71138086,
    PIIX4_PM_BASE = 0x40,
    PM1_STATUS = 0,
    PM1_ENABLE = 2,
    PM1_CONTROL = 4,
    PM_TIMER = 8,
    POWER_BUTTON = 1 << 8,
    SLEEP_ENABLE = 1 << 13,     /* with sleep type 0 in bits 10-12: S5 on this machine */
    TIMER_MASK = 0xffffff,
};

static uint16_t pm_base;
static uint32_t timer_last, timer_rest;
static uint64_t clock_ms;

/*
 * The timer counts 3579545 ticks a second, that is 715909 two-hundredths of a tick a millisecond, in 24 bits: the
 * product below fits 32 bits, and no 64-bit division (a function of libgcc) is needed.
 */
static void clock_update(void)
{
    uint32_t now = inl((uint16_t)(pm_base + PM_TIMER)) & TIMER_MASK;
    uint32_t parts = ((now - timer_last) & TIMER_MASK) * 200 + timer_rest;
    timer_last = now;
    timer_rest = parts % 715909;
    clock_ms += parts / 715909;
}

/* Whether the time `when` (the low half of clock_ms) has come. */
static int is_due(uint32_t when)
{
    return (int32_t)((uint32_t)clock_ms - when) >= 0;
}

static void power_init(void)
{
    if (!pm_base)
        panic("no PIIX4 power management: the machine must be pc");
    timer_last = inl((uint16_t)(pm_base + PM_TIMER)) & TIMER_MASK;
    outw((uint16_t)(pm_base + PM1_ENABLE), POWER_BUTTON);
}

static int power_button_pressed(void)
{
    return inw((uint16_t)(pm_base + PM1_STATUS)) & POWER_BUTTON;
}

static _Noreturn void power_off(void)
{
    uint32_t patience = (uint32_t)clock_ms + FAREWELL_MS;
    while (serial_pump() && !is_due(patience))
        clock_update();
    outw((uint16_t)(pm_base + PM1_STATUS), POWER_BUTTON);
    outw((uint16_t)(pm_base + PM1_CONTROL), SLEEP_ENABLE);
    for (;;)
        ;
}

/* ---- clock chip ---- */

enum { CMOS_INDEX = 0x70, CMOS_DATA = 0x71, CMOS_CENTURY = 0x32, CMOS_BUSY = 0x80, CMOS_BINARY = 0x04 };

static uint8_t cmos(uint8_t index)
{
    outb(CMOS_INDEX, index);
    return inb(CMOS_DATA);
}

static void cmos_date(uint8_t date[7])
{
    static const uint8_t registers[7] = { 0, 2, 4, 7, 8, 9, CMOS_CENTURY };
    while (cmos(0x0a) & CMOS_BUSY)
        ;
    for (int i = 0; i < 7; i++)
        date[i] = cmos(registers[i]);
}

/* Seconds since 1970. The date is read until it is the same twice: a change in between would give a mixture. */
static uint32_t cmos_time(void)
{
    static const uint16_t days_before[12] = { 0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334 };
    uint8_t d[7], again[7];
    do {
        cmos_date(d);
        cmos_date(again);
    } while (memcmp(d, again, sizeof(d)));
    if (!(cmos(0x0b) & CMOS_BINARY))
        for (int i = 0; i < 7; i++)
            d[i] = (uint8_t)(d[i] - 6 * (d[i] >> 4));
    uint32_t year = d[6] * 100u + d[5], month = (d[4] + 11u) % 12;
    uint32_t days = (year - 1970) * 365 + (year - 1969) / 4 + days_before[month] + d[3] - 1;
    if (month >= 2 && year % 4 == 0)        /* right until 2099 */
        days++;
    return ((days * 24 + d[2]) * 60 + d[1]) * 60 + d[0];
}

/* ---- interrupts ----
 *
 * They carry no news: they end a HLT, and the main loop looks at the rings and the clock itself. So nothing depends
 * on one that comes late, twice or never, which a migration may well bring about.
 */

enum {
    PIC1 = 0x20,
    PIC2 = 0xa0,
    PIC_EOI = 0x20,
    PIT_CHANNEL0 = 0x40,
    PIT_MODE = 0x43,
    PIT_HZ = 1193182,
    FIRST_VECTOR = 0x20,
    GATE = 0x8e00,              /* present, 32-bit interrupt gate */
    CODE_SEGMENT = 0x08,
};

struct gate {
    uint16_t offset_low, segment, type, offset_high;
} __attribute__((packed));

void interrupt_entry(void);
void exception_entry(void);
void on_interrupt(void);
void on_exception(void);

static struct gate gates[FIRST_VECTOR + 16];

static void interrupt_gates(void)
{
    struct { uint16_t limit; void *base; } __attribute__((packed)) pointer = { sizeof(gates) - 1, gates };
    for (uint32_t i = 0; i < ARRAY_SIZE(gates); i++) {
        uint32_t entry = (uint32_t)(i < FIRST_VECTOR ? exception_entry : interrupt_entry);
        gates[i] = (struct gate){ (uint16_t)entry, CODE_SEGMENT, GATE, (uint16_t)(entry >> 16) };
    }
    __asm__ volatile("lidt %0" : : "m"(pointer));
}

/* Moves the controllers' vectors away from the exceptions'; opens the timer, the second controller and `lines`. */
static void interrupt_init(uint16_t lines)
{
    uint16_t mask = (uint16_t)~(lines | 1 << 0 | 1 << 2);
    interrupt_gates();
    outb(PIC1, 0x11);
    outb(PIC2, 0x11);
    outb(PIC1 + 1, FIRST_VECTOR);
    outb(PIC2 + 1, FIRST_VECTOR + 8);
    outb(PIC1 + 1, 4);
    outb(PIC2 + 1, 2);
    outb(PIC1 + 1, 1);
    outb(PIC2 + 1, 1);
    outb(PIC1 + 1, (uint8_t)mask);
    outb(PIC2 + 1, (uint8_t)(mask >> 8));
    outb(PIT_MODE, 0x34);
    outb(PIT_CHANNEL0, (PIT_HZ / TICKS_PER_SECOND) & 0xff);
    outb(PIT_CHANNEL0, (PIT_HZ / TICKS_PER_SECOND) >> 8);
}

/* ---- virtio-blk, the legacy interface of a transitional device ---- */

enum {
    VIRTIO_BLK = 0x10011af4,
    VIRTIO_BALLOON = 0x10021af4,
    HOST_FEATURES = 0x00,
    GUEST_FEATURES = 0x04,
    QUEUE_PAGE = 0x08,
    QUEUE_SIZE = 0x0c,
    QUEUE_SELECT = 0x0e,
    QUEUE_NOTIFY = 0x10,
    DEVICE_STATUS = 0x12,
    DEVICE_ISR = 0x13,
    BLK_CAPACITY = 0x14,
    STATUS_DRIVER = 1 | 2,      /* acknowledged, and we know how to drive it */
    STATUS_DRIVER_OK = 4,
    FEATURE_FLUSH = 1 << 9,
    REQUEST_READ = 0,
    REQUEST_WRITE = 1,
    REQUEST_FLUSH = 4,
    DESCRIPTOR_NEXT = 1,
    DESCRIPTOR_DEVICE_WRITES = 2,
    MAX_QUEUE = 1024,
    QUEUE_BYTES = 8 * PAGE,     /* what a queue of 1024 needs */
    UNANSWERED = 0xff,
};

struct descriptor {
    uint64_t address;
    uint32_t length;
    uint16_t flags, next;
};

struct available {
    uint16_t flags, index, ring[];
};

struct used {
    uint16_t flags, index;
};

struct request {
    uint32_t type, reserved;
    uint64_t sector;
};

struct record {
    char magic[8];
    uint16_t version, disk, disks, zero;
    uint64_t run, n, clock_ms, verified, bad;
    uint32_t pass, first_bad_page, first_bad_pass, io_errors, record_ms, mib, rate, zero2;
    uint64_t sectors;
    char name[NAME_BYTES];
    uint32_t payload[95];
    uint32_t crc;
};
_Static_assert(sizeof(struct record) == SECTOR, "a record is one sector");

struct disk {
    uint8_t queue[QUEUE_BYTES] __attribute__((aligned(PAGE)));
    struct record record __attribute__((aligned(SECTOR)));
    struct request request;
    volatile uint8_t status;
    uint16_t port, queue_size, submitted;
    struct descriptor *descriptors;
    volatile struct available *available;
    volatile struct used *used;
    int flushes;
    uint64_t sectors, position;     /* position: the sector of the next record */
};

static struct disk disks[MAX_DISKS];
static uint32_t disk_count;
static uint16_t disk_lines;

static void disk_queue_init(struct disk *disk)
{
    outw(disk->port + QUEUE_SELECT, 0);
    uint32_t size = inw(disk->port + QUEUE_SIZE);
    if (!size || size > MAX_QUEUE)
        panic("a disk's queue is of a size that does not fit");
    disk->queue_size = (uint16_t)size;
    uint32_t end_of_available = size * sizeof(struct descriptor) + 2 * (3 + size);
    disk->descriptors = (struct descriptor *)disk->queue;
    disk->available = (volatile struct available *)(disk->queue + size * sizeof(struct descriptor));
    disk->used = (volatile struct used *)(disk->queue + ((end_of_available + PAGE - 1) & ~(PAGE - 1u)));
    outl(disk->port + QUEUE_PAGE, (uint32_t)disk->queue / PAGE);
}

static void disk_init(struct disk *disk)
{
    outb(disk->port + DEVICE_STATUS, 0);
    outb(disk->port + DEVICE_STATUS, STATUS_DRIVER);
    uint32_t features = inl(disk->port + HOST_FEATURES) & FEATURE_FLUSH;
    outl(disk->port + GUEST_FEATURES, features);
    disk->flushes = features != 0;
    disk_queue_init(disk);
    outb(disk->port + DEVICE_STATUS, STATUS_DRIVER | STATUS_DRIVER_OK);
    disk->sectors = inl(disk->port + BLK_CAPACITY) | (uint64_t)inl(disk->port + BLK_CAPACITY + 4) << 32;
    if (!disk->sectors)
        panic("a disk has no sectors");
}

static void disk_describe(struct disk *disk, uint16_t i, void *data, uint32_t length, uint16_t flags)
{
    disk->descriptors[i] = (struct descriptor){ (uint32_t)data, length, flags, (uint16_t)(i + 1) };
}

/* Hands one request to the device: there is never more than one, so its descriptors are always 0 to 2. */
static void disk_submit(struct disk *disk, uint32_t type)
{
    uint16_t data_flags = DESCRIPTOR_NEXT | (type == REQUEST_READ ? DESCRIPTOR_DEVICE_WRITES : 0);
    uint16_t i = 0;
    disk->request = (struct request){ type, 0, type == REQUEST_FLUSH ? 0 : disk->position };
    disk->status = UNANSWERED;
    disk_describe(disk, i++, &disk->request, sizeof(disk->request), DESCRIPTOR_NEXT);
    if (type != REQUEST_FLUSH)
        disk_describe(disk, i++, &disk->record, SECTOR, data_flags);
    disk_describe(disk, i, (void *)&disk->status, 1, DESCRIPTOR_DEVICE_WRITES);
    disk->available->ring[disk->submitted % disk->queue_size] = 0;
    memory_barrier();           /* the request is in memory before the device may see its number */
    disk->available->index = ++disk->submitted;
    memory_barrier();           /* and the number before the device is told to look */
    outw(disk->port + QUEUE_NOTIFY, 0);
}

static int disk_answered(struct disk *disk)
{
    int answered = disk->used->index == disk->submitted;
    memory_barrier();           /* the status and the data are read after the index that announces them */
    return answered;
}

static void balloon_found(uint16_t port);
static void balloon_acknowledge(void);

static void pci_found(uint32_t function, uint32_t id)
{
    if (id == VIRTIO_BALLOON) {
        pci_write(function, PCI_COMMAND, pci_read(function, PCI_COMMAND) | PCI_IO_AND_MASTER);
        disk_lines |= (uint16_t)(1 << (pci_read(function, PCI_LINE) & 15));
        balloon_found(pci_read(function, PCI_BAR0) & 0xfffc);
    }
    if (id == PIIX4_PM)
        pm_base = pci_read(function, PIIX4_PM_BASE) & 0xffc0;
    if (id != VIRTIO_BLK || disk_count == MAX_DISKS)
        return;
    pci_write(function, PCI_COMMAND, pci_read(function, PCI_COMMAND) | PCI_IO_AND_MASTER);
    disk_lines |= (uint16_t)(1 << (pci_read(function, PCI_LINE) & 15));
    disks[disk_count++].port = pci_read(function, PCI_BAR0) & 0xfffc;
}

/* The lines of PCI stay raised until the device's own register is read. */
void on_interrupt(void)
{
    for (uint32_t i = 0; i < disk_count; i++)
        inb(disks[i].port + DEVICE_ISR);
    balloon_acknowledge();
    outb(PIC2, PIC_EOI);
    outb(PIC1, PIC_EOI);
}

void on_exception(void)
{
    panic("processor exception");
}

/* ---- virtio-balloon, the legacy interface too: memory given back to the host, and taken again ----
 *
 * One request at a time. The pages are those above the stamped area, which nothing else uses; the last one that was
 * given is the first to be taken.
 */

enum { BALLOON_TARGET = 0x14, BALLOON_ACTUAL = 0x18, BALLOON_PAGES = 256, INFLATE = 0, DEFLATE = 1, BALLOON_QUEUES = 2 };

struct queue {
    uint8_t memory[QUEUE_BYTES] __attribute__((aligned(PAGE)));
    uint16_t size, submitted;
    struct descriptor *descriptors;
    volatile struct available *available;
    volatile struct used *used;
};

static struct {
    uint16_t port;
    struct queue queues[BALLOON_QUEUES];
    uint32_t numbers[BALLOON_PAGES];
    uint32_t first, pages;          /* what may be given: page numbers */
    uint32_t given, asked;          /* pages given; those of the request under way */
    int under_way;                  /* the queue of the request, or -1 */
} balloon = { .under_way = -1 };

static void balloon_found(uint16_t port)
{
    balloon.port = port;
}

static void balloon_acknowledge(void)
{
    if (balloon.port)
        inb(balloon.port + DEVICE_ISR);
}

static void balloon_queue_init(uint16_t number)
{
    struct queue *queue = &balloon.queues[number];
    outw(balloon.port + QUEUE_SELECT, number);
    uint32_t size = inw(balloon.port + QUEUE_SIZE);
    if (!size || size > MAX_QUEUE)
        panic("the balloon's queue is of a size that does not fit");
    queue->size = (uint16_t)size;
    uint32_t end_of_available = size * sizeof(struct descriptor) + 2 * (3 + size);
    queue->descriptors = (struct descriptor *)queue->memory;
    queue->available = (volatile struct available *)(queue->memory + size * sizeof(struct descriptor));
    queue->used = (volatile struct used *)(queue->memory + ((end_of_available + PAGE - 1) & ~(PAGE - 1u)));
    outl(balloon.port + QUEUE_PAGE, (uint32_t)queue->memory / PAGE);
}

/* `first` to `end`: addresses of what nobody uses. */
static void balloon_init(uint32_t first, uint32_t end)
{
    if (!balloon.port)
        return;
    balloon.first = (first + PAGE - 1) / PAGE;
    balloon.pages = end / PAGE > balloon.first ? end / PAGE - balloon.first : 0;
    outb(balloon.port + DEVICE_STATUS, 0);
    outb(balloon.port + DEVICE_STATUS, STATUS_DRIVER);
    outl(balloon.port + GUEST_FEATURES, 0);
    balloon_queue_init(INFLATE);
    balloon_queue_init(DEFLATE);
    outb(balloon.port + DEVICE_STATUS, STATUS_DRIVER | STATUS_DRIVER_OK);
}

static void balloon_submit(uint16_t number, uint32_t from, uint32_t count)
{
    struct queue *queue = &balloon.queues[number];
    for (uint32_t i = 0; i < count; i++)
        balloon.numbers[i] = balloon.first + from + i;
    balloon.asked = count;
    balloon.under_way = number;
    queue->descriptors[0] = (struct descriptor){ (uint32_t)balloon.numbers, count * 4, 0, 0 };
    queue->available->ring[queue->submitted % queue->size] = 0;
    memory_barrier();
    queue->available->index = ++queue->submitted;
    memory_barrier();
    outw(balloon.port + QUEUE_NOTIFY, number);
}

static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* Goes on with what the host wants. */
static void balloon_step(void)
{
    if (!balloon.port)
        return;
    if (balloon.under_way >= 0) {
        struct queue *queue = &balloon.queues[balloon.under_way];
        if (queue->used->index != queue->submitted)
            return;
        balloon.given += balloon.under_way == INFLATE ? balloon.asked : -balloon.asked;
        balloon.under_way = -1;
        outl(balloon.port + BALLOON_ACTUAL, balloon.given);
    }
    uint32_t target = least(inl(balloon.port + BALLOON_TARGET), balloon.pages);
    if (target > balloon.given) {
        balloon_submit(INFLATE, balloon.given, least(target - balloon.given, BALLOON_PAGES));
    } else if (target < balloon.given) {
        uint32_t count = least(balloon.given - target, BALLOON_PAGES);
        balloon_submit(DEFLATE, balloon.given - count, count);
    }
}

/* ---- command line ---- */

enum { MULTIBOOT_LOADED = 0x2badb002, MULTIBOOT_MEMORY = 1 << 0, MULTIBOOT_CMDLINE = 1 << 2 };

struct multiboot {
    uint32_t flags, memory_lower_kib, memory_upper_kib, boot_device;
    const char *cmdline;
};

static struct {
    char name[NAME_BYTES];
    uint32_t record_ms, mib, rate;
} options = { .name = "guest", .record_ms = 20, .mib = 8, .rate = 500 };

/* If `word` is KEY=VALUE with this key, the value; else NULL. */
static const char *value_of(const char *word, const char *key)
{
    while (*key)
        if (*word++ != *key++)
            return NULL;
    return *word == '=' ? word + 1 : NULL;
}

static void read_number(const char *value, uint32_t most, uint32_t *number)
{
    uint32_t sum = 0;
    if (!value)
        return;
    for (; *value >= '0' && *value <= '9'; value++)
        if ((sum = sum * 10 + (uint32_t)(*value - '0')) > most)
            sum = most;
    *number = sum;
}

static void read_name(const char *value)
{
    if (!value)
        return;
    memset(options.name, 0, NAME_BYTES);
    for (uint32_t i = 0; i < NAME_BYTES - 1 && value[i] && value[i] != ' '; i++)
        options.name[i] = value[i];
}

static void read_options(const char *word)
{
    while (*word) {
        read_name(value_of(word, "name"));
        read_number(value_of(word, "record_ms"), 1000000, &options.record_ms);
        read_number(value_of(word, "mib"), 2048, &options.mib);
        read_number(value_of(word, "rate"), 1000000, &options.rate);
        while (*word && *word != ' ')
            word++;
        while (*word == ' ')
            word++;
    }
}

/* ---- memory ----
 *
 * Three words of a page are stamped: the first, the last and one that moves from pass to pass. The next pass finds
 * them as they were left, or the page (or the newest write to it) was lost on the way.
 */

enum { WORDS = PAGE / 4, RESERVED_AT_TOP_KIB = 1024 };

extern uint8_t image_end[];

static struct {
    volatile uint32_t *area;
    uint32_t pages, next, pass;
    uint32_t unused, end;               /* addresses: behind the area nothing is used, up to the firmware's tables */
    uint32_t credit, credited;          /* thousandths of a page that are due; the clock when that was reckoned */
    uint64_t verified, bad;
    uint32_t first_bad_page, first_bad_pass;
} memory = { .first_bad_page = NO_PAGE };

/* Behind the image; the firmware's tables at the top of the memory are left alone. */
static void memory_init(uint32_t upper_kib)
{
    uint32_t start = (uint32_t)image_end;
    uint32_t room_kib = upper_kib + 1024 - start / 1024;
    uint32_t most = room_kib > RESERVED_AT_TOP_KIB ? (room_kib - RESERVED_AT_TOP_KIB) / 1024 : 0;
    if (options.mib > most) {
        complain("mib is more than the memory holds: less is used");
        options.mib = most;
    }
    memory.area = (volatile uint32_t *)start;
    memory.pages = options.mib * (1024 * 1024 / PAGE);
    memory.unused = start + options.mib * 1024 * 1024;
    memory.end = (upper_kib + 1024 - RESERVED_AT_TOP_KIB) * 1024;
}

static uint32_t stamp(uint32_t pass, uint32_t page, uint32_t word)
{
    return (pass * 0x9e3779b1u) ^ (page * 0x85ebca77u) ^ (word * 0xc2b2ae3du) ^ 0x5bd1e995u;
}

static uint32_t moving_word(uint32_t pass, uint32_t page)
{
    return 1 + (pass * 37 + page * 101) % (WORDS - 2);
}

static int page_is_good(volatile uint32_t *words, uint32_t pass, uint32_t page)
{
    uint32_t moving = moving_word(pass, page);
    return words[0] == stamp(pass, page, 0) && words[WORDS - 1] == stamp(pass, page, WORDS - 1) &&
           words[moving] == stamp(pass, page, moving);
}

static void page_stamp(volatile uint32_t *words, uint32_t pass, uint32_t page)
{
    uint32_t moving = moving_word(pass, page);
    words[0] = stamp(pass, page, 0);
    words[WORDS - 1] = stamp(pass, page, WORDS - 1);
    words[moving] = stamp(pass, page, moving);
}

static void page_verify(volatile uint32_t *words, uint32_t page)
{
    memory.verified++;
    if (page_is_good(words, memory.pass - 1, page))
        return;
    if (!memory.bad++) {
        memory.first_bad_page = page;
        memory.first_bad_pass = memory.pass;
    }
}

static void page_step(void)
{
    volatile uint32_t *words = memory.area + memory.next * WORDS;
    if (memory.pass)
        page_verify(words, memory.next);
    page_stamp(words, memory.pass, memory.next);
    if (++memory.next == memory.pages) {
        memory.next = 0;
        memory.pass++;
    }
}

/* What is due grows with the clock, but never beyond one second: a processor that was away need not catch up. */
static void memory_reckon(void)
{
    uint32_t elapsed = (uint32_t)clock_ms - memory.credited;
    memory.credited = (uint32_t)clock_ms;
    memory.credit += (elapsed < 1000 ? elapsed : 1000) * options.rate;
    if (memory.credit > options.rate * 1000)
        memory.credit = options.rate * 1000;
}

/* Stamps a few of the pages that are due. Returns whether more are due. */
static int memory_step(void)
{
    if (!memory.pages)
        return 0;
    memory_reckon();
    for (uint32_t i = 0; i < PAGES_AT_ONCE && memory.credit >= 1000; i++) {
        page_step();
        memory.credit -= 1000;
    }
    return memory.credit >= 1000;
}

/* ---- records ---- */

static const char magic[8] = { 'l', 'v', 'm', 'g', 'r', 'e', 'c', 0x1a };

static uint32_t crc_table[256];

static void crc_init(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int bit = 0; bit < 8; bit++)
            c = c & 1 ? c >> 1 ^ 0xedb88320u : c >> 1;
        crc_table[i] = c;
    }
}

static uint32_t crc(const void *data, uint32_t size)
{
    const uint8_t *byte = data;
    uint32_t c = 0xffffffffu;
    while (size--)
        c = crc_table[(c ^ *byte++) & 255] ^ c >> 8;
    return ~c;
}

static enum { WAITING, WRITING, FLUSHING, FAILED } record_state;
static uint32_t run, record_number, record_due, io_errors;
static uint32_t record_disk;            /* the one that record_state speaks of */
static uint64_t record_clock;           /* one time for the record on every disk */

static void record_payload(struct record *record)
{
    uint32_t x = (run * 0x9e3779b1u ^ record_number * 0x85ebca77u ^ record_disk) | 1;
    for (uint32_t i = 0; i < ARRAY_SIZE(record->payload); i++) {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        record->payload[i] = x;
    }
}

static void record_fill(struct disk *disk)
{
    struct record *record = &disk->record;
    *record = (struct record){
        .version = 1, .disk = (uint16_t)record_disk, .disks = (uint16_t)disk_count,
        .run = run, .n = record_number, .clock_ms = record_clock,
        .verified = memory.verified, .bad = memory.bad, .pass = memory.pass,
        .first_bad_page = memory.first_bad_page, .first_bad_pass = memory.first_bad_pass,
        .io_errors = io_errors, .record_ms = options.record_ms, .mib = options.mib, .rate = options.rate,
        .sectors = disk->sectors,
    };
    memcpy(record->magic, magic, sizeof(magic));
    memcpy(record->name, options.name, NAME_BYTES);
    record_payload(record);
    record->crc = crc(record, SECTOR - sizeof(record->crc));
}

static void record_write(void)
{
    record_fill(&disks[record_disk]);
    disk_submit(&disks[record_disk], REQUEST_WRITE);
    record_state = WRITING;
}

static void record_announce(void)
{
    struct line line = { .length = 0 };
    put_text(&line, "R");
    put_field(&line, run);
    put_field(&line, record_number);
    put_field(&line, memory.pass);
    put_field(&line, (uint32_t)memory.bad);
    send_line(&line);
}

/* The next one is due a period after this one was, or now if that is past: a delay is not made up for by a burst. */
static void record_done(void)
{
    record_announce();
    record_number++;
    record_due += options.record_ms;
    if (is_due(record_due))
        record_due = (uint32_t)clock_ms;
    record_state = WAITING;
}

/* The disk has the record for good: on to the next disk, or the record is done. */
static void record_kept(struct disk *disk)
{
    if (++disk->position == disk->sectors)
        disk->position = 0;
    if (++record_disk < disk_count)
        record_write();
    else
        record_done();
}

/* A record that failed stays the next one: its number is never passed over. */
static void record_failed(void)
{
    io_errors++;
    record_due = (uint32_t)clock_ms + RETRY_MS;
    record_state = FAILED;
}

static void record_answered(struct disk *disk)
{
    if (disk->status != 0) {
        record_failed();
    } else if (record_state == WRITING && disk->flushes) {
        disk_submit(disk, REQUEST_FLUSH);
        record_state = FLUSHING;
    } else {
        record_kept(disk);
    }
}

static void record_begin(void)
{
    record_disk = 0;
    record_clock = clock_ms;
    record_write();
}

/* Goes on with the record as far as it can. Returns whether a disk or the clock has to be waited for. */
static int record_step(void)
{
    struct disk *disk = &disks[record_disk];
    switch (record_state) {
    case WAITING:
        if (!is_due(record_due))
            return 1;
        record_begin();
        return 0;
    case FAILED:
        if (!is_due(record_due))
            return 1;
        record_write();
        return 0;
    default:
        if (!disk_answered(disk))
            return 1;
        record_answered(disk);
        return 0;
    }
}

static int between_requests(void)
{
    return record_state == WAITING || record_state == FAILED;
}

/* The run of the record in a disk's first sector, or 0. The latest run on a disk is always found there. */
static uint32_t run_found(struct disk *disk)
{
    disk_submit(disk, REQUEST_READ);
    while (!disk_answered(disk))
        wait_for_interrupt();
    struct record *record = &disk->record;
    int is_record = disk->status == 0 && !memcmp(record->magic, magic, sizeof(magic)) &&
                    record->crc == crc(record, SECTOR - sizeof(record->crc));
    return is_record ? (uint32_t)record->run : 0;
}

static void run_init(void)
{
    run = cmos_time();
    for (uint32_t i = 0; i < disk_count; i++) {
        uint32_t before = run_found(&disks[i]);
        if (before >= run)
            run = before + 1;
    }
}

/* ---- main ---- */

static void announce_start(void)
{
    struct line line = { .length = 0 };
    put_text(&line, "B");
    put_field(&line, run);
    put_field(&line, disk_count);
    put_field(&line, options.mib);
    put_field(&line, options.rate);
    put_field(&line, options.record_ms);
    send_line(&line);
}

static _Noreturn void shut_down(void)
{
    struct line line = { .length = 0 };
    put_text(&line, "S");
    put_field(&line, run);
    put_field(&line, record_number);
    send_line(&line);
    power_off();
}

static void prepare(uint32_t loaded_by, const struct multiboot *info)
{
    serial_init();
    if (loaded_by != MULTIBOOT_LOADED || !(info->flags & MULTIBOOT_MEMORY))
        panic("not loaded by a multiboot loader that tells the memory size");
    if (info->flags & MULTIBOOT_CMDLINE)
        read_options(info->cmdline);
    memory_init(info->memory_upper_kib);    /* the loader's information may be overwritten from here on */
    crc_init();
    pci_scan(pci_found);
    if (!disk_count)
        panic("no virtio disk");
    for (uint32_t i = 0; i < disk_count; i++)
        disk_init(&disks[i]);
    interrupt_init(disk_lines);
    run_init();
    balloon_init(memory.unused, memory.end);
    power_init();
}

_Noreturn void guest_main(uint32_t loaded_by, const struct multiboot *info);

_Noreturn void guest_main(uint32_t loaded_by, const struct multiboot *info)
{
    prepare(loaded_by, info);
    announce_start();
    for (;;) {
        clock_update();
        int record_waits = record_step();
        int more_pages = memory_step();
        balloon_step();
        serial_pump();
        if (between_requests() && power_button_pressed())
            shut_down();
        if (record_waits && !more_pages)
            wait_for_interrupt();
    }
}
