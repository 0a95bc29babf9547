# What runs on a node.  A shell there is given these lines and those of guard.sh once, and keeps them only as long as it
# is connected: nothing is installed.  POSIX sh, with drbd-utils, GNU find, stat and flock.
#
# Before these lines come: root (prefix of /run and /sys, empty but in tests) and patience (seconds for the lock).
# After them comes a call of serve, or of one function that says what it does below.
#
# Statuses of its own, next to drbdsetup's (1, 10, 11, 17, 20):
#   90 no DRBD module               93 the token is somebody else's (it is on stdout)
#   91 the token is not ours        94 the node could not be looked at
#   92 another command has the lock 95 no such resource
#   96 not connected                97 something has the device open (who, on stdout)
#   98 the guard does not answer    99 a guard could not be started
#   89 nothing that may be forced

# shellcheck disable=SC2154 # root and patience stand before these lines
set -u
set -f
PATH=$PATH:/usr/sbin:/usr/bin:/sbin:/bin
LC_ALL=C
export PATH LC_ALL
umask 077
tokens=$root/run/lvmigrate
# For how long the open files of all processes may be looked through, in seconds.
looking_s=${looking_s:-15}
# How long whoever a stream is for may be silent, in seconds: several of the pauses between two beats (storage/shell.py).
quiet_s=${quiet_s:-30}
newline='
'

say() { printf '%s\n' "$*"; }
fail() { status=$1; shift; say "$*" >&2; exit "$status"; }

# ---- tokens: $tokens/UUID.token holds a line each: id, deadline, holder, lease (hundredths), errand, instance.
# Times are those of /proc/uptime.  The file is only ever replaced as a whole: it may be read without the lock.

# names UUID: the guest's files.
names() {
    uuid=$1
    token=$tokens/$1.token
    lock=$tokens/$1.lock
    unit=lvmigrate-guard-$1.service
}

# locked UUID FUNCTION...: one command at a time for a guest.
# The last holder removes the lock file, so what was locked may be a file without a name: then again.
locked() {
    names "$1"
    shift
    [ -d "$tokens" ] || mkdir -p "$tokens" || exit 94
    while :; do
        exec 9>>"$lock" || exit 94
        flock -w "$patience" 9 || fail 92 "$lock is held by another command"
        # Not $$, which is another process in a subshell.
        [ "$lock" -ef /proc/self/fd/9 ] && break
    done
    "$@"
}

# hundredths SECONDS: into $hundredths.  Without a process of its own, as all that a guard does while the token lives.
hundredths() {
    case $1 in
        *[!0-9.]* | '' | *.*.*) return 1 ;;
        *.??) hundredths=${1%.*}${1#*.} ;;
        *) return 1 ;;
    esac
}

read_token() {
    id='' deadline='' holder='' errand='' instance=''
    [ -e "$token" ] || return 1
    {
        IFS= read -r id
        IFS= read -r deadline
        IFS= read -r holder
        IFS= read -r _lease
        IFS= read -r errand
        IFS= read -r instance
    } <"$token"
    return 0
}

# left: hundredths of a second until the deadline that was read, into $left.  One that cannot be read never comes: better
# a person looks.
left() {
    IFS=' ' read -r up _idle </proc/uptime
    hundredths "$deadline" || return 1
    left=$hundredths
    hundredths "$up"
    left=$((left - hundredths))
}

expired() { left && [ "$left" -le 0 ]; }

# write_token ID HOLDER LEASE (hundredths) ERRAND INSTANCE
write_token() {
    IFS=' ' read -r up _idle </proc/uptime
    hundredths "$up"
    end=$((hundredths + $3))
    frac=$((end % 100))
    [ "$frac" -ge 10 ] || frac=0$frac
    deadline=$((end / 100)).$frac
    printf '%s\n' "$1" "$deadline" "$2" "$3" "$4" "$5" >"$token.new" && mv -f "$token.new" "$token"
}

# take_token REPLACES KNOWN ID...: the words of write_token follow; REPLACES may be empty.  KNOWN: of those that ran out only
# the one with this id is taken, or with the one that its guard has given it; *: any.
take_token() {
    replaces=$1 known=$2
    shift 2
    if read_token && [ "$id" != "$1" ] && [ "$id" != "${replaces:-$1}" ]; then
        [ "$known" = '*' ] || [ "$id" = "$known" ] || [ "$id" = "over-$known" ] || known=''
        if [ -z "$known" ] || ! expired; then
            tell_token
            exit 93
        fi
    fi
    write_token "$@" || exit 94
}

# tell_token: what read_token found, a line each.
tell_token() {
    left || left=never
    say "token $uuid"
    say "id $id"
    say "left $left"
    say "holder ${holder:-unknown (see $token)}"
    say "errand $errand"
    say "instance $instance"
}

need_token() {
    if ! read_token; then
        rm -f "$lock"
        fail 91 "there is no token"
    fi
    [ "$id" = "$1" ] || fail 91 "it belongs to $holder"
}

# renew_token GUARDED ID...: the words of write_token follow.
renew_token() {
    guarded=$1
    shift
    need_token "$1"
    write_token "$@" || exit 94
    # Others need not wait for the guard.
    exec 9>&-
    [ "$guarded" = no ] || acknowledged
}

drop_token() {
    if read_token && [ "$id" != "$1" ]; then
        return
    fi
    # What an arming left that was killed before there were orders; where there are, their guard is at work.
    set -- "$token" "$token.new" "$lock"
    if [ -e "$tokens/$uuid.guard" ]; then rm -f "$@"; else forget_guard "$@"; fi
}

# ---- guards: next to the token are UUID.guard, the orders; UUID.seen, the deadline that the guard has seen last, then
# what it said last; UUID.sh, what it runs.  See guard.sh.

# acknowledged: wait until the guard has seen the deadline that was just written, or the one that replaced it since.
acknowledged() {
    written=$deadline
    # About 5 s; a guard that was just started needs less than one that sleeps.
    for pause in .02 .02 .02 .05 .1 .1 .2 .2 .2 .2 .2 .2 .2 .2 .2 .2 .2 .2 .2 .2 .2 .2 .2 .2 .2 .2 .2 .2 .2; do
        seen=''
        { IFS= read -r seen <"$tokens/$uuid.seen"; } 2>/dev/null
        [ "$seen" != "$written" ] || return 0
        [ -n "$seen" ] && read_token && [ "$seen" = "$deadline" ] && return 0
        sleep "$pause"
    done
    fail 98 "the guard has not seen the new deadline $written: $(systemctl is-active "$unit" 2>&1)"
}

# traces: every token and every guard, a line for each thing that is known of it.
traces() {
    set +f
    for file in "$tokens/"*.token; do
        name=${file##*/}
        names "${name%.token}"
        if read_token 2>/dev/null && [ -e "$token" ]; then tell_token; fi
    done
    for file in "$tokens/"*.guard; do
        name=${file##*/}
        names "${name%.guard}"
        orders=$(cat "$file" 2>/dev/null) || continue
        running=no
        systemctl --quiet is-active "$unit" 2>/dev/null && running=yes
        says=''
        { IFS= read -r _seen && IFS= read -r says; } 2>/dev/null <"$tokens/$uuid.seen"
        say "guard $uuid"
        say "alive $running"
        say "says $says"
        say "$orders"
    done
    set -f
}

guard_trouble() {
    if [ ! -d "$root/run/systemd/system" ]; then
        say "systemd is not its first process"
        return
    fi
    for program in systemd-run systemctl virsh timeout; do
        if ! command -v "$program" >/dev/null; then
            say "$program is not there"
            return
        fi
    done
}

# stop_guard: it does not run any more.  A guard acts only while it has the lock, and that is ours: none is in mid-act.
stop_guard() {
    # It waits for the end, and fails if there is none, or no such service.
    systemctl stop "$unit" 2>/dev/null && return
    state=$(systemctl is-active "$unit")
    case $state in
        inactive | unknown) ;;
        failed) systemctl reset-failed "$unit" 2>/dev/null ;;
        *) fail 94 "the service $unit is ${state:-in a state that cannot be seen}" ;;
    esac
}

# disarm: from now on the guard does nothing.  It acts only under the lock, which is ours, and by its orders; one that
# finds none ends, within half a second.
disarm() { forget_guard; }

# forget_guard FILE...: after it, nothing of a guard is there, and nothing half written, nor these files: a guard is stopped
# at any instant, and a command may be killed.  The orders go first and the script last: a guard that is started again in
# between finds nothing to do, and removes the rest.
forget_guard() {
    of=$tokens/$uuid
    rm -f "$of.guard" "$of.guard.new" "$of.seen" "$of.seen.new" "$of.sh.new" "$of.sh" "$@"
}

# hold_back UUID: no shutdown and no sleep of this node until nobody is heard any more, where systemd can do that.
hold_back() {
    [ -d "$root/run/systemd/system" ] && command -v systemd-inhibit >/dev/null || return 0
    heard | systemd-inhibit --what=shutdown:sleep --mode=block --who=lvmigrate --why="a guest is being moved ($1)" cat >/dev/null
}

# keepalive: the settings of libvirt's qemu driver as its file says them; nothing where they are its defaults.
keepalive() {
    [ -r "$root/etc/libvirt/qemu.conf" ] || return 0
    sed -n 's/^[[:space:]]*\(keepalive_[a-z]*\)[[:space:]]*=[[:space:]]*\(-\{0,1\}[0-9]*\).*/\1 \2/p' \
        "$root/etc/libvirt/qemu.conf"
}

# premises GUEST AUTOSTART PEER_URI ADDRESS PORT [KIND:NAME]...: what a move depends on, a fact a line; see
# Marks.premises.  An empty PEER_URI, ADDRESS or PORT is not tried; KIND is path, interface or program.
premises() {
    guest=$1 autostart=$2 uri=$3 address=$4 port=$5
    shift 5
    for thing in "$@"; do
        name=${thing#*:}
        case $thing in
            path:*) [ -e "$root$name" ] ;;
            interface:*) [ -e "$root/sys/class/net/$name" ] ;;
            program:*) command -v -- "$name" >/dev/null ;;
            *) false ;;
        esac && say "has $thing"
    done
    image=$root/var/lib/libvirt/qemu/save/$guest.save
    if [ -e "$image" ]; then say "saved $image"; fi
    ports
    sed -n 's/^ *[0-9]*: [0-9A-F]*:\([0-9A-F]\{4\}\) [0-9A-F:]* 0A .*/listening \1/p' \
        "$root/proc/net/tcp" "$root/proc/net/tcp6" 2>/dev/null
    [ "$autostart" != yes ] || starters
    if [ -n "$uri" ]; then
        # As libvirtd would, which is root too and has no terminal either.
        said=$(timeout $((2 * patience)) virsh -q -c "$uri" hostname 2>&1 </dev/null)
        say "peer $? $(say "$said" | tr '\n' ' ')"
    fi
    if [ -n "$address" ] && command -v bash >/dev/null; then
        # A port that is closed answers as well as one that is open.
        # shellcheck disable=SC2016 # for bash
        said=$(timeout 5 bash -c ': <>"/dev/tcp/$0/$1"' "$address" "$port" 2>&1 </dev/null)
        say "memory $? $(say "$said" | tr '\n' ' ')"
    fi
}

# ports: the first and last one for migrations, where libvirt's qemu driver has other ones than its defaults.
ports() {
    conf=$root/etc/libvirt/qemu.conf
    say "ports $(setting migration_port_min "$conf") - $(setting migration_port_max "$conf")"
}

# starters: what starts guests at boot, and what that waits for, as systemd says it.
starters() {
    command -v systemctl >/dev/null || return 0
    systemctl show -p Id -p ActiveState -p UnitFileState -p After libvirtd.service virtqemud.service 2>/dev/null |
        sed 's/^/unit /'
}

# available: memory in KiB.
available() { [ ! -r "$root/proc/meminfo" ] || sed -n 's/^MemAvailable: *\([0-9]*\) kB$/\1/p' "$root/proc/meminfo"; }

# vitals PROGRAM...: what the node says of itself, a fact a line; see Marks.vitals.  The time comes last: from then on only
# the answer's way counts.
vitals() {
    IFS=' ' read -r begun _idle </proc/uptime
    hundredths "$begun"
    begun=$hundredths
    for program in "$@"; do
        command -v -- "$program" >/dev/null || say "lacks $program"
    done
    if loaded; then say "module $(one "$root/sys/module/drbd/version")"; fi
    if command -v drbdadm >/dev/null; then
        timeout 5 drbdadm --version 2>/dev/null | sed -n 's/^DRBDADM_VERSION=/utils /p'
    fi
    if command -v sshd >/dev/null; then
        timeout 5 sshd -T 2>/dev/null | sed -n 's/^maxsessions /sessions /p'
    fi
    starters
    IFS=' ' read -r up _idle </proc/uptime
    hundredths "$up"
    say "took $((hundredths - begun))"
    say "at $(date +%s.%N)"
}

# evidence GUEST: what a report of a defect needs, in sections; see around.evidence.  None of it is worth an error.
evidence() {
    if loaded; then
        section drbd-show drbdsetup show
        section drbd-status drbdsetup status --verbose --statistics
        section drbd-events drbdsetup events2 --now --statistics
    fi
    case $1 in
        */* | '') ;;
        *) section qemu tail -n 200 "$root/var/log/libvirt/qemu/$1.log" ;;
    esac
    section libvirtd-log tail -n 200 "$root/var/log/libvirt/libvirtd.log"
    section libvirtd journalctl -q -n 300 --no-pager -o short-iso -u libvirtd -u virtqemud
    section kernel journalctl -q -k -n 200 --no-pager -o short-iso -g drbd
    section guards journalctl -q -n 200 --no-pager -o short-iso -u 'lvmigrate-guard-*'
}

# section NAME COMMAND...
section() {
    say "= $1"
    shift
    timeout 8 "$@" 2>&1 </dev/null | tail -c 200000 | sed 's/^/ /'
}

# certificates: what QEMU here encrypts migrations with, a fact a line; see Marks.certificates.
certificates() {
    conf=$root/etc/libvirt/qemu.conf
    folder=$(setting migrate_tls_x509_cert_dir "$conf")
    if [ -z "$folder" ] && [ -d "$root/etc/pki/libvirt-migrate" ]; then folder=/etc/pki/libvirt-migrate; fi
    [ -n "$folder" ] || folder=$(setting default_tls_x509_cert_dir "$conf")
    [ -n "$folder" ] || folder=/etc/pki/qemu
    say "folder $folder"
    if ! command -v openssl >/dev/null; then say "trouble openssl is not there to read them"; return 0; fi
    wanted='server-cert.pem server-key.pem'
    verify=$(setting migrate_tls_x509_verify "$conf")
    [ -n "$verify" ] || verify=$(setting default_tls_x509_verify "$conf")
    # Without it the one who receives asks the one who sends for no certificate.
    [ "$verify" = 0 ] || wanted="$wanted client-cert.pem client-key.pem"
    for file in ca-cert.pem $wanted; do
        if [ ! -r "$root$folder/$file" ]; then say "trouble there is no $folder/$file"; return 0; fi
    done
    authority=$root$folder/ca-cert.pem
    say "authority $(openssl x509 -noout -fingerprint -sha256 -in "$authority" 2>/dev/null)"
    for file in ca-cert.pem server-cert.pem client-cert.pem; do
        [ -r "$root$folder/$file" ] || continue
        said=$(openssl verify -CAfile "$authority" "$root$folder/$file" 2>&1) && continue
        case $said in
            *expired* | *'not yet valid'*) say "expired $file" ;;
            *) say "unsigned $file" ;;
        esac
    done
    openssl x509 -noout -ext subjectAltName -in "$root$folder/server-cert.pem" 2>/dev/null |
        tr ',' '\n' | sed -n 's/^ *\(DNS\|IP Address\):\([^ ]*\) *$/name \2/p'
    openssl x509 -noout -subject -nameopt multiline -in "$root$folder/server-cert.pem" 2>/dev/null |
        sed -n 's/^ *commonName *= */common /p'
}

# setting KEY FILE: its value without quotes, nothing where the file does not set it.
setting() {
    [ -r "$2" ] || return 0
    sed -n "s/^[[:space:]]*$1[[:space:]]*=[[:space:]]*\"\{0,1\}\([^\"[:space:]]*\)\"\{0,1\}[[:space:]]*\$/\1/p" "$2" | tail -n 1
}

# reach PATH...: what each that exists is, in words that are the same on every node that reaches the same; lines
#   INDEX path RESOLVED                        (without symbolic links)
#   INDEX file INODE FSTYPE SOURCE ROOT REST   (REST: below the mount point; ROOT: what of the file system is mounted)
#   INDEX rbd|scsi|nvme|mpath|nbd|lvm WHAT     (a block device that says what it is)
#   INDEX block SECTORS                        (any block device)
#   INDEX exclusive WORDS                      (it cannot be opened on another node meanwhile)
reach() {
    index=0
    for path in "$@"; do
        if [ -e "$path" ]; then
            path=$(readlink -f -- "$path")
            say "$index path $path"
            if [ -b "$path" ]; then reach_device; elif [ -f "$path" ]; then reach_file; fi
        fi
        index=$((index + 1))
    done
}

reach_file() {
    point=$(stat -c %m -- "$path") || return 0
    type='' from='' base=''
    while read -r _id _parent _number there at rest; do
        [ "$at" = "$point" ] || continue
        # Of several mounts on one point the last one is seen.
        base=$there
        rest=${rest#* - }
        type=${rest%% *}
        rest=${rest#* }
        from=${rest%% *}
    done 2>/dev/null <"$root/proc/self/mountinfo"
    say "$index file $(stat -c %i -- "$path") ${type:--} ${from:--} ${base:--} ${path#"${point%/}"}"
}

reach_device() {
    number=$(stat -L -c '0x%t 0x%T' -- "$path")
    number=$((${number% *})):$((${number#* }))
    device=$root/sys/dev/block/$number
    say "$index block $(one "$device/size")"
    part=''
    if [ -r "$device/partition" ]; then
        read -r part <"$device/partition"
        device=$device/..
    fi
    name=$(readlink -f -- "$device")
    name=${name##*/}
    case $name in
        rbd*)
            bus=$root/sys/bus/rbd/devices/${name#rbd}
            tell_device rbd "$(one "$bus/cluster_fsid") $(one "$bus/pool")/$(one "$bus/pool_ns")/$(one "$bus/name")@$(one "$bus/current_snap")"
            case $(one "$bus/config_info") in
                *exclusive*) say "$index exclusive it is mapped with the option exclusive" ;;
            esac
            ;;
        nbd*) [ -z "$(one "$device/backend")" ] || tell_device nbd "$(one "$device/backend")" ;;
        nvme*) world_wide "$(one "$device/wwid")" && tell_device nvme "$line" ;;
        dm-*)
            id=$(one "$device/dm/uuid")
            case $id in
                # As scsi_id(8) and nvme write it: 3 before an NAA, 2 before an EUI-64.
                mpath-3[256]* | mpath-2* | mpath-eui.* | mpath-uuid.*) tell_device mpath "$id" ;;
                LVM-*) reach_logical_volume "${id#LVM-}" ;;
            esac
            ;;
        *)
            world_wide "$(one "$device/device/wwid")" || return 0
            tell_device scsi "$line"
            command -v sg_persist >/dev/null || return 0
            case $(timeout 5 sg_persist --in --read-reservation "$path" 2>/dev/null) in
                *registrants*) ;;
                *'type: Write Exclusive'* | *'type: Exclusive Access'*)
                    say "$index exclusive a persistent reservation gives it to one node"
                    ;;
            esac
            ;;
    esac
}

# world_wide ID: whether nothing else in the world has that identifier; into $line.  What the kernel falls back to (t10.*, an
# NAA of kind 3, nvme.*; scsi_lib.c, nvme's core.c) is a vendor's name and a serial, which each node's own disk may have:
# QEMU's SATA disks are all called QM00001 and so on.
world_wide() {
    line=$1
    case $line in
        naa.[256]* | eui.* | uuid.*) ;;
        *) return 1 ;;
    esac
}

# reach_logical_volume UUIDS: of its volume group and of itself, one behind the other.  Other nodes can reach it if lvmlockd
# has its lock: they know its group then.
reach_logical_volume() {
    command -v lvmlockctl >/dev/null || return 0
    own=${1#????????????????????????????????}
    while read -r lock of mode name; do
        case $lock/$of/$(printf '%s' "$name" | tr -d -) in "LK/LV/$own") ;; *) continue ;; esac
        case $mode in sh | ex) tell_device lvm "$1" ;; esac
        [ "$mode" != ex ] || say "$index exclusive lvmlockd keeps it for this node alone (\`lvchange -asy\` shares it)"
    done <<END
$(timeout 5 lvmlockctl --info 2>/dev/null)
END
}

tell_device() { say "$index $1 $2${part:+ partition $part}"; }

# one FILE: its only line; nothing if there is none.
one() {
    line=''
    [ ! -r "$1" ] || read -r line <"$1"
    say "$line"
}

# with_token UUID ID FUNCTION...: under the lock, if the token is ours.
with_token() {
    guest=$1 ours=$2
    shift 2
    locked "$guest" checked "$@"
}

checked() {
    need_token "$ours"
    "$@"
}

# ---- DRBD

need_drbd() {
    version=''
    loaded || fail 90 "the drbd module is not loaded"
    read -r version <"$root/sys/module/drbd/version"
}

dump_all() {
    need_drbd
    drbdsetup events2 --now --statistics
}

# Every resource there is, then a dot and how it is configured; on a node without DRBD there is none.
dump_any() {
    loaded || return 0
    drbdsetup events2 --now --statistics || return
    say .
    show_any
}

show_any() {
    ! loaded || drbdsetup show
}

loaded() { [ -r "$root/sys/module/drbd/version" ]; }

# surroundings RESOURCE...: the module's version, and of each resource whether two primaries are allowed for good, and
# which other program of this node has it in its configuration:
#   version VERSION
#   lasting RESOURCE
#   hand linstor|drbd-reactor|pacemaker RESOURCE yes|no      (whether that program runs)
surroundings() {
    need_drbd
    say "version $version"
    for name in "$@"; do
        shown=$(drbdsetup show "$name") || exit
        case $shown in *allow-two-primaries*yes*) lasting "$name" ;; esac
        if [ -e "$root/var/lib/linstor.d/$name.res" ]; then hand linstor linstor-satellite "$name"; fi
        pattern=$(quoted "$name")
        # Its files are those that end so: `drbd-reactorctl disable` gives them another end.
        if grep -rqs --include='*.toml' \
            -e "^[[:space:]]*\[*[[:space:]]*promoter\.resources\.[\"']\{0,1\}${pattern}[\"']\{0,1\}[[:space:]]*[].]" \
            "$root/etc/drbd-reactor.toml" "$root/etc/drbd-reactor.d"; then
            hand drbd-reactor drbd-reactor "$name"
        fi
        if grep -qs -e "name=\"drbd_resource\" value=\"$pattern\"" "$root/var/lib/pacemaker/cib/cib.xml"; then
            hand pacemaker pacemaker "$name"
        fi
    done
}

# lasting RESOURCE: a line, if its configuration, applied anew, would leave two primaries allowed.  Asked of drbdadm
# itself, which would do it: what it would not touch is as the configuration says.
lasting() {
    plan=$(timeout 20 drbdadm --dry-run adjust "$1" 2>/dev/null) || return 0
    while read -r tool command rest; do
        case $tool/$command/$rest in
            drbdsetup*/net-options/*--allow-two-primaries=yes*) ;;
            drbdsetup*/net-options/* | drbdsetup*/*connect/* | drbdsetup*/new-*) return 0 ;;
        esac
    done <<END
$plan
END
    say "lasting $1"
}

# quoted WORD: for a pattern.
quoted() { say "$1" | sed 's/[].[*^$\\]/\\&/g'; }

# hand PROGRAM SERVICE RESOURCE
hand() {
    running=no
    systemctl --quiet is-active "$2" 2>/dev/null && running=yes
    say "hand $1 $3 $running"
}

# look RESOURCE: what the kernel says: $role, $devices (VOLUME:MINOR ...), $disks (their states, as many), $connected (node
# ids of peers).
look() {
    look_at "$1" || fail 95 "there is no resource $1"
}

# look_at RESOURCE: as look, and whether there is such a resource.  An unknown one is no error to drbdsetup: it prints
# nothing and exits 0.
look_at() {
    need_drbd
    dump=$(drbdsetup events2 --now "$1") || exit
    role='' devices='' disks='' connected=''
    while read -r _action object words; do
        volume='' minor='' peer=''
        for word in $words; do
            case $object/$word in
                resource/role:*) role=${word#role:} ;;
                device/volume:*) volume=${word#volume:} ;;
                device/minor:*) minor=${word#minor:} ;;
                device/disk:*) disks="$disks ${word#disk:}" ;;
                connection/peer-node-id:*) peer=${word#peer-node-id:} ;;
                connection/connection:Connected) connected="$connected $peer" ;;
            esac
        done
        [ -z "$minor" ] || devices="$devices $volume:$minor"
    done <<END
$dump
END
    [ -n "$role" ]
}

show() {
    shown_of "$1"
    say "$shown"
}

# shown_of RESOURCE: what drbdsetup show says of it, into $shown.
shown_of() {
    need_drbd
    shown=$(drbdsetup show "$1")
    status=$?
    # Only then it may be that there is none.
    if [ "$status" != 0 ] || [ -z "$shown" ]; then look "$1"; fi
    [ "$status" = 0 ] || exit "$status"
}

# each primary|secondary RESOURCE [OPTION]: the tool for 8.4 takes one minor at a time.
each() {
    case $version in
        8.*) for device in $devices; do drbdsetup "$1" "${device#*:}" ${3:+"$3"} || return; done ;;
        *) drbdsetup "$1" "$2" ${3:+"$3"} ;;
    esac
}

# promote RESOURCE [PEER_NODE_ID]: refused unless Connected to that peer, which answers.
promote() {
    look "$1"
    if [ -n "${2-}" ]; then
        need_connected "$2"
        case $version in 8.*) need_peer "$1" ;; esac
    fi
    each primary "$1"
}

# need_peer RESOURCE: fails unless the peer acknowledges what DRBD has sent it.  8.4 asks a Connected peer before a
# promotion; if the link has died, and was not missed yet, it waits until it is, then promotes all the same and begins a
# generation, with which the copies have parted (drbd_set_role; so it went in the lab).  Options that were just set have
# been sent to the peer (drbd_adm_net_opts): the link is not idle.  Each of its sockets must be seen with less to be
# acknowledged than a moment ago, or nothing; how soon a busy node sends something again tells too late.
need_peer() {
    shown_of "$1"
    own='' theirs='' section=''
    while read -r key _family value _rest; do
        value=${value%;}
        case $section/$key in
            */_this_host | */_remote_host) section=$key ;;
            _this_host/address) own=${value##*:} ;;
            _remote_host/address) theirs=${value##*:} from=${value%:*} ;;
        esac
    done <<END
$shown
END
    [ -n "$own" ] && [ -n "$theirs" ] || return 0
    own=$(printf '%04X' "$own") theirs=$(printf '%04X' "$theirs")
    # As the kernel writes it; one of IPv6 is told by its ports alone.
    # shellcheck disable=SC2086 # into words
    case $from in
        *[!0-9.]*) from='[0-9A-F]*' ;;
        *) from=$(IFS=. && set -- $from && printf '%02X%02X%02X%02X' "$4" "$3" "$2" "$1") ;;
    esac
    before=' ' alive=' ' silent=0 tries_left=40
    while [ "$tries_left" -gt 0 ]; do
        tries_left=$((tries_left - 1))
        now=' ' again=0
        while read -r _slot end other _state queues _timer tries _rest; do
            [ -n "$queues" ] || continue
            socket=$end-$other queue=$((0x${queues%%:*}))
            was=${before#*" $socket="}
            if [ "$queue" = 0 ] || { [ "$was" != "$before" ] && [ "$queue" -lt "${was%% *}" ]; }; then
                alive="$alive$socket "
            fi
            case $alive in *" $socket "*) continue ;; esac
            now="$now$socket=$queue "
            again=$((again + 0x$tries))
        done <<END
$(grep -h -e " [0-9A-F]*:$own $from:[0-9A-F]* 01 " -e " [0-9A-F]*:[0-9A-F]* $from:$theirs 01 " \
            "$root/proc/net/tcp" "$root/proc/net/tcp6" 2>/dev/null)
END
        [ "$now" != ' ' ] || return 0
        before=$now
        # One packet is lost now and then: only what is sent again in vain for some time tells.
        if [ "$again" = 0 ]; then silent=0; else silent=$((silent + 1)); fi
        [ "$silent" -lt 3 ] || break
        sleep 0.1
    done
    fail 96 "the peer does not acknowledge what DRBD sends: its link is silent"
}

# promote_by_force RESOURCE: copies that are old, and whole.  drbdsetup's --force takes more: an Inconsistent one, which is
# a mixture of two points in time; and a connected one, whose peer it overwrites.
promote_by_force() {
    look "$1"
    [ -z "$connected" ] || fail 89 "its connection is Connected"
    [ -n "$disks" ] || fail 89 "it has no volume"
    for disk in $disks; do
        case $disk in
            UpToDate | Outdated | Consistent) ;;
            *) fail 89 "a copy is $disk" ;;
        esac
    done
    each primary "$1" --force
}

# A holder may be fleeting: udev looks at a device that was just closed.  So about a second is given.  8.4 refuses by itself
# whatever has a device open, in any mode (drbd_open counts all), and no moment lies between that look and the act; but it
# demotes volumes one by one, and 9 counts writers only: there, who has one of them open is looked for first.
demote() {
    look "$1"
    [ "$role" != Secondary ] || return 0
    wanted=' '
    want_devices "$1"
    for _try in 1 2 3 4 5 6; do
        case $version/${devices# } in
            8.*/*' '* | [!8]*) found=$(find_openers) || exit ;;
            *) found='' ;;
        esac
        if [ -n "$found" ]; then
            refused=''
        else
            refused=$(each secondary "$1" 2>&1) && return 0
            status=$?
            case $refused in
                *'(-12)'*) ;;
                *) fail "$status" "$refused" ;;
            esac
        fi
        sleep 0.2
    done
    [ -n "$found" ] || found=$(find_openers)
    [ -z "$found" ] || say "$found"
    fail 97 "$refused"
}

# set_options RESOURCE PEER_NODE_ID PROTOCOL yes|no END END: protocol and allow-two-primaries of that connection; nothing if
# they are so already.  Then what `show` says.
set_options() {
    shown_of "$1"
    set_now "$2"
    case $allowed/$protocol in
        none/*) fail 96 "there is no such connection" ;;
        "$4/$3") say "$shown"; return 0 ;;
    esac
    set -- "$1" "$2" "$5" "$6" "--protocol=$3" "--allow-two-primaries=$4"
    if [ "$allowed" = yes ]; then
        net_options_connected "$@"
    else
        drbdsetup net-options "$3" "$4" "$5" "$6"
    fi || return
    show "$1"
}

# set_now PEER_NODE_ID: what $shown says of that connection: $allowed (none: there is no such connection), $protocol.
set_now() {
    allowed=none protocol=C
    case $version in 8.*) number=0 ;; *) number='' ;; esac
    two=no letter=C
    while read -r key value _comment; do
        value=${value%;}
        case $key in
            connection) number='' two=no letter=C ;;
            _peer_node_id) number=$value ;;
            allow-two-primaries) two=$value ;;
            protocol) letter=$value ;;
        esac
        # With 8.4 there is a connection if there is a remote host.
        case $version/$key in
            8.*/_remote_host) allowed=$two protocol=$letter ;;
            8.*) [ "$allowed" = none ] || { allowed=$two protocol=$letter; } ;;
            *) [ "$number" != "$1" ] || { allowed=$two protocol=$letter; } ;;
        esac
    done <<END
$shown
END
}

# net_options_connected RESOURCE PEER_NODE_ID WORD...: drbdsetup net-options WORD..., refused unless Connected.  The
# kernel accepts two-primaries=no during a cut, even when both ends are Primary, and then the nodes refuse each other
# when they meet again.
net_options_connected() {
    look "$1"
    need_connected "$2"
    shift 2
    drbdsetup net-options "$@"
}

# need_connected PEER_NODE_ID: after look.
need_connected() {
    case "$connected " in
        *" $1 "*) ;;
        *) fail 96 "the connection is not Connected" ;;
    esac
}

# reconnect RESOURCE PEER_NODE_ID WORD...: connect again what is StandAlone, with the options WORD... where the module keeps
# them (9).  8.4 forgets a connection that is StandAlone, so there the configuration's are taken.  Whoever calls knows that
# one copy alone has changed: of two the kernel refuses to connect them, or discards one where the configuration says so
# (its after-sb policies).
reconnect() {
    look "$1"
    name=$1 peer=$2
    shift 2
    case $version in
        8.*) case $dump in *' connection:StandAlone'* ) ;; *' connection:'*) return 0 ;; esac
            drbdadm connect "$name" ;;
        *) case $(say "$dump" | grep " peer-node-id:$peer ") in *' connection:StandAlone'*) ;; *) return 0 ;; esac
            drbdsetup net-options "$name" "$peer" "$@" && drbdsetup connect "$name" "$peer" ;;
    esac
}

# begin_verify RESOURCE PEER_NODE_ID VOLUME: compare its blocks with that peer's, from the first one.  Under the guest's lock,
# and refused while the guest has a token: what has begun then is a move, which watches that replication is Established.
begin_verify() {
    ! read_token || fail 92 "a move of the guest has begun"
    if begin_verify_unheld "$@"; then status=0; else status=$?; fi
    rm -f "$lock"
    return "$status"
}

begin_verify_unheld() (
    look "$1"
    need_connected "$2"
    replicated=$(say "$dump" | grep " peer-device name:$(quoted "$1") peer-node-id:$2 .* volume:$3 ")
    case "$replicated " in
        *' replication:Established '*) ;;
        *) fail 96 "volume $3 is not replicated to the peer, or it is being brought in step or verified" ;;
    esac
    for device in $devices; do
        case $version/${device%%:*} in
            8.*/"$3") drbdsetup verify "${device#*:}" --start=0 ;;
            */"$3") drbdsetup verify "$1" "$2" "$3" --start=0 ;;
        esac || exit
    done
)

# verify_ends RESOURCE PEER: of each volume the last line of the kernel's log that an online verify came to its end:
#   VOLUME TIME REST
verify_ends() {
    look "$1"
    log=$(kernel_log | grep -e ': Online verify  *done')
    for device in $devices; do
        line=$(say "$log" | grep -e "drbd $(quoted "$1")/${device%%:*} drbd${device#*:}\( $(quoted "$2")\)\{0,1\}: " \
            -e "block drbd${device#*:}: " | tail -n 1)
        [ -z "$line" ] || say "${device%%:*} $line"
    done
}

# generation_now RESOURCE PEER_NODE_ID VOLUME:MINOR: into $generation; - if there is none.  Its lowest bit says that this
# node is Primary, and is no part of it.
#
# A device of 9.3 that never had another generation than its first (it was made without an initial resynchronisation) begins
# its second when it is opened for writing the first time, beside its peer, which takes it over (drbd_uuid_is_day0; so it
# went in the lab, when QEMU opened it on the target).  Nothing has parted: as long as nothing is marked for the peer, and
# nothing came before it, the second counts as the first.
generation_now() {
    case $version in
        8.*) generation=$(drbdsetup get-gi "${3#*:}") || generation=- ;;
        *)
            generation=$(drbdsetup get-gi "$1" "$2" "${3%%:*}") || generation=-
            none=0000000000000000
            case $generation in
                *:"$none":"$none":*) ;;
                *:"$none":*:"$none":*) generation=${generation#*:*:} ;;
            esac
            ;;
    esac
    generation=${generation%%:*}
    case $generation in
        *[!0-9A-Fa-f]* | '') generation=- ;;
        *1) generation=${generation%?}0 ;;
        *3) generation=${generation%?}2 ;;
        *5) generation=${generation%?}4 ;;
        *7) generation=${generation%?}6 ;;
        *9) generation=${generation%?}8 ;;
        *[Bb]) generation=${generation%?}A ;;
        *[Dd]) generation=${generation%?}C ;;
        *[Ff]) generation=${generation%?}E ;;
    esac
}

# generations RESOURCE...: lines RESOURCE VOLUME UUID.  The peer is any: the current generation is this node's own.
generations() {
    for name in "$@"; do
        look "$name"
        peer=${dump##*peer-node-id:}
        peer=${peer%%[!0-9]*}
        for device in $devices; do
            generation_now "$name" "${peer:-0}" "$device"
            say "$name ${device%%:*} $generation"
        done
    done
}

# lineages PEER RESOURCE...: what tells whether two copies have parted: lines
#   gi RESOURCE VOLUME UUIDS KIB           (generations as drbdsetup get-gi prints them; what differs, - if not known)
#   since RESOURCE TIME                    (when the connection was lost, by this node's kernel log)
lineages() {
    towards=$1
    shift
    broken='Disconnecting\|Timeout\|BrokenPipe\|NetworkFailure\|ProtocolError\|TearDown'
    log=$(kernel_log | grep -e ' conn( [A-Za-z]* -> ')
    for name in "$@"; do
        look "$name"
        peer=0
        while read -r _action object words; do
            case "$object $words " in connection\ *" conn-name:$towards "*) ;; *) continue ;; esac
            peer=${words#*peer-node-id:}
            peer=${peer%%[!0-9]*}
        done <<END
$dump
END
        full=$(drbdsetup events2 --now --statistics) || exit
        for device in $devices; do
            case $version in
                8.*) uuids=$(drbdsetup get-gi "${device#*:}") || uuids=- ;;
                *) uuids=$(drbdsetup get-gi "$name" "$peer" "${device%%:*}") || uuids=- ;;
            esac
            differs "$name" "$peer" "$device"
            say "gi $name ${device%%:*} ${uuids:--} $kib"
        done
        # 9 names the peer; with 8.4 there is one, and the state is that of a resynchronisation too.
        lost=$(say "$log" | grep -e "drbd $(quoted "$name") $(quoted "$towards"): .*conn( Connected -> " \
            -e "drbd $(quoted "$name")\(/[0-9]* drbd[0-9]*\)\{0,1\}: .*conn( [A-Za-z]* -> \($broken\) )" |
            grep -v "conn( \(StandAlone\|Unconnected\|WFConnection\|WFReportParams\|$broken\) -> " | tail -n 1)
        [ -z "$lost" ] || say "since $name ${lost%% *}"
    done
}

kernel_log() {
    journalctl -q -k -b -o short-iso-precise --no-pager 2>/dev/null || dmesg --time-format iso 2>/dev/null
}

# differs RESOURCE PEER_NODE_ID VOLUME:MINOR: into $kib what $full says.  8.4 forgets it with the connection, but for /proc/drbd.
differs() {
    kib=-
    while read -r _action object words; do
        case "$object $words " in
            "peer-device name:$1 peer-node-id:$2 "*" volume:${3%%:*} "*out-of-sync:*)
                kib=${words#*out-of-sync:}
                kib=${kib%%[!0-9]*}
                ;;
        esac
    done <<END
$full
END
    if [ "$kib" != - ] || [ ! -r "$root/proc/drbd" ]; then return; fi
    minor=''
    while read -r first rest; do
        case $first in [0-9]*:) minor=${first%:} ;; esac
        case "$minor $rest " in
            "${3#*:} "*" oos:"*) kib=${rest#*oos:}; kib=${kib%%[!0-9]*} ;;
        esac
    done <"$root/proc/drbd"
}

# ---- who has a device open: lines RESOURCE VOLUME WHAT, some of them twice

# openers RESOURCE...: who is no guest is looked for twice: udev reads a device that was just closed, and is gone again.
openers() {
    wanted=' '
    for name in "$@"; do
        look "$name"
        want_devices "$name"
    done
    found=$(find_openers) || exit
    fleeting=no
    while read -r line; do
        case $line in
            *', of the guest '*) ;;
            *' (pid '*) fleeting=yes ;;
        esac
    done <<END
$found
END
    if [ "$fleeting" = no ]; then
        [ -z "$found" ] || say "$found"
        return
    fi
    sleep 0.5
    again=$newline$(find_openers)$newline || exit
    while read -r line; do
        case $again in *"$newline$line$newline"*) say "$line" ;; esac
    done <<END
$found
END
}

# want_devices RESOURCE: after look; its devices into $wanted.
want_devices() {
    for device in $devices; do
        want "147:${device#*:}" "$1/${device%%:*}"
        # Partitions are devices of their own.
        set +f
        for part in "/sys/dev/block/147:${device#*:}/"*/partition; do
            [ -r "$part" ] && read -r other <"${part%/partition}/dev" && want "$other" "$1/${device%%:*}"
        done
        set -f
    done
}

# want MAJOR:MINOR RESOURCE/VOLUME: a word xMAJOR:MINOR=... in hexadecimal, as stat says it, and one dMAJOR:MINOR=...,
# as the kernel does.  Device numbers are compared and not paths: a process may have a /dev of its own.
want() { wanted="$wanted$(printf 'x%x:%x' "${1%:*}" "${1#*:}")=$2 d$1=$2 "; }

# place_of NUMBER: RESOURCE/VOLUME in $place, if the device is wanted.
place_of() {
    case $wanted in
        *" $1="*) place=${wanted#*" $1="}; place=${place%% *} ;;
        *) return 1 ;;
    esac
}

# opener WHAT: it has $place open.
opener() { say "${place%/*} ${place##*/} $1"; }

find_openers() {
    by_processes || return
    by_kernel
}

# Our own /dev/zero is opened to see that looking works at all: tools that are missing or other than GNU's would
# otherwise look like "nobody".  What is on a file system of other machines is not looked at, and all of it takes no more
# than so long: a server that is gone would hold whoever asks for a file of its own, and with it the guest's lock.
by_processes() {
    set --
    while read -r _id _parent _number _base point rest; do
        rest=${rest#* - }
        case ${rest%% *} in
            nfs | nfs4 | cifs | smb3 | ceph | 9p | afs | lustre | beegfs | gfs2 | ocfs2 | fuse | fuse.*)
                set -- "$@" ! -lname "$point/*"
                ;;
        esac
    done </proc/self/mountinfo
    exec 8</dev/zero
    set +f
    seen=$(timeout -k 2 "$looking_s" find /proc/[0-9]*/fd -maxdepth 1 -type l ! -lname 'socket:*' ! -lname 'pipe:*' \
        ! -lname 'anon_inode:*' ! -lname '/memfd:*' ! -lname /dev/null "$@" \( -xtype b -o -lname /dev/zero \) \
        -exec stat -L -c 'x%t:%T %n' {} + 2>/dev/null)
    case $? in
        124 | 137) fail 94 "to look who has it open took more than $looking_s s: does a file system of other machines hang?" ;;
    esac
    set -f
    exec 8<&-
    case $seen in
        *'x1:5 /proc/'*) ;;
        *) fail 94 "find or stat does not do what GNU's do" ;;
    esac
    while read -r number path; do
        if place_of "$number"; then
            pid=${path#/proc/}
            pid=${pid%%/*}
            comm='?' mode=''
            read -r comm 2>/dev/null <"/proc/$pid/comm"
            while read -r key value; do
                case $key$value in
                    flags:*0) mode=' for reading' ;;
                    flags:*[12]) mode=' for writing' ;;
                esac
            done 2>/dev/null <"/proc/$pid/fdinfo/${path##*/}"
            of_guest "$pid"
            opener "$comm (pid $pid)$mode$guest"
        fi
    done <<END
$seen
END
}

# of_guest PID: ", of the guest NAME" in $guest if it is that of a guest of libvirt's: its daemon writes which it is.
of_guest() {
    guest=''
    set +f
    for file in "$root/run/libvirt/qemu/"*.pid; do
        own=''
        read -r own 2>/dev/null <"$file"
        if [ "$own" = "$1" ]; then
            guest=${file##*/}
            guest=", of the guest ${guest%.pid}"
        fi
    done
    set -f
}

# What holds a device without a process: other devices on top, mounts (of every mount namespace), swap, loop devices.
# No process is started for a line: a node may have hundreds of mounts.
by_kernel() {
    set +f
    for word in $wanted; do
        number=${word%%=*}
        for above in "/sys/dev/block/${number#d}/holders/"*; do
            [ -e "$above" ] && place_of "$number" && opener "the device ${above##*/} on top of it"
        done
    done
    spaces=$(find /proc/[0-9]*/ns -maxdepth 1 -name mnt -printf '%l %h\n' 2>/dev/null)
    set -f
    known=' '
    while read -r space where; do
        case $known in *" $space "*) continue ;; esac
        while read -r _id _parent number _base point rest; do
            # A process that is gone by now says nothing: then another one of its namespace is read.
            case $known in *" $space "*) ;; *) known="$known$space " ;; esac
            source=${rest#* - }
            source=${source#* }
            held "d$number" "${source%% *}" "mounted on $point"
        done 2>/dev/null <"${where%/ns}/mountinfo"
    done <<END
$spaces
END
    [ "$known" != ' ' ] || fail 94 "mount namespaces cannot be listed"
    while read -r source _rest; do
        held - "$source" "used as swap"
    done </proc/swaps
    set +f
    for loop in /sys/block/loop*/loop/backing_file; do
        if [ -r "$loop" ] && read -r source <"$loop"; then
            loop=${loop#/sys/block/}
            held - "$source" "behind the device ${loop%%/*}"
        fi
    done
    set -f
}

# held NUMBER SOURCE WHAT: a line, if it is about a wanted device, by its number or by its path.
held() {
    case $2 in
        *drbd*) [ ! -b "$2" ] || set -- "$(stat -L -c 'x%t:%T' "$2")" "$2" "$3" ;;
    esac
    if place_of "$1"; then opener "$3"; fi
}

# ---- devices

# locate PATH...: a line INDEX MAJOR MINOR (hexadecimal) for each that is a block device, then a dot and what dump_any says.
locate() {
    index=0
    for path in "$@"; do
        [ ! -b "$path" ] || say "$index $(stat -L -c '%t %T' "$path")"
        index=$((index + 1))
    done
    say .
    dump_any
}

# ---- streams

# follow: the events of all resources as they happen.  With a resource's name drbdsetup drops those of the others before
# it looks at the sequence of the kernel's messages: until drbd-utils 9.28 it then tells of events that are not missing
# ("- skipped 4"), and since then it waits for them for ever.
follow() {
    need_drbd
    while_heard drbdsetup events2 --statistics --timestamps
}

# heard: until standard input ends, or nothing has come on it for so long.  Of a connection that was cut for longer than the
# other end tried, sshd here learns nothing for two hours.
heard() { while [ -n "$(timeout --foreground "$quiet_s" head -c 1)" ]; do :; done; }

# while_heard COMMAND...: run it until it ends by itself or nobody is heard any more.  8.4's events2 does not notice that
# nobody listens until the next event.
while_heard() {
    exec 7<&0
    "$@" </dev/null 7<&- &
    child=$!
    {
        heard
        kill "$child"
    } <&7 >/dev/null 2>&1 7<&- &
    watcher=$!
    exec 7<&- </dev/null
    wait "$child"
    status=$?
    kill "$watcher" 2>/dev/null
    return "$status"
}

# serve: run what comes on standard input, two lines each: a mark that is in no answer, and a call.  Its answer is what it
# says on stdout, a line MARK STATUS, what it says on stderr, a line MARK with a dot.  Each runs in a process of its own.
serve() {
    while IFS= read -r mark && IFS= read -r call; do
        {
            said=$(eval "$call" 2>&1 >&3 3>&- </dev/null)
            status=$?
        } 3>&1
        printf '\n%s %s\n%s\n%s.\n' "$mark" "$status" "$said" "$mark"
    done
}
