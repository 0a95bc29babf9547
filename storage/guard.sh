
# ---- The dead-man's guard of one guest.  These lines follow node.sh, in the shell that arms a guard and in the script
# that the guard runs.  It is a transient service of its own, lvmigrate-guard-UUID, and outlives whoever started it.
#
# While the token lives it does nothing but acknowledge each new deadline, and have systemd hold a shutdown or a sleep of
# the node back.  Once the token ran out or is gone, it looks
# and decides as lvmigrate/guard.py does (see there for the invariant), until nothing is left to do.
#
# Its orders, UUID.guard:  instance NAME
#                          resume yes|no|never   (whether the guest ran when it was armed; never: not on this node)
#                          link RESOURCE PEER PEER_NODE_ID ALLOW PROTOCOL AUTO_PROMOTE END END   (what to restore)
#                          gen RESOURCE VOLUME UUID                           (the data's generation when it was armed)
# The ends of a connection are what drbdsetup net-options wants: two addresses (8.4), or resource and node id.

# How a try ends, next to the statuses of node.sh.
is_over=77
goes_on=78

# arm ORDER...: under the guest's lock, the token being ours.  $text is what the guard runs.
arm() {
    trouble=$(guard_trouble)
    [ -z "$trouble" ] || fail 99 "$trouble"
    orders=$tokens/$uuid.guard
    script=$tokens/$uuid.sh
    written=$deadline
    first=yes
    if [ -e "$orders" ]; then first=no; fi
    # systemd forgets one that has ended (--collect).
    if [ "$first" = no ] || [ -e "$root/run/systemd/transient/$unit" ]; then stop_guard; fi
    baseline=$(for order in "$@"; do
        # shellcheck disable=SC2086 # an order is words
        set -- $order
        [ "$1" != link ] || baseline "$2" "$4"
    done) || exit
    printf '%s\n' "$@" ${baseline:+"$baseline"} >"$orders.new" && mv -f "$orders.new" "$orders" || exit 94
    # shellcheck disable=SC2154 # $text stands before these lines
    # No guard reads it before it is whole: none runs.  One that is killed once it was disarmed finds none, and ends.
    printf '%s\n' "$text" "guard $uuid" >"$script" || exit 94
    [ ! -e "$tokens/$uuid.seen" ] || rm -f "$tokens/$uuid.seen"
    refused=$(systemd-run --quiet --collect --no-ask-password --unit="$unit" \
        --description="lvmigrate: closes what the move of $uuid opened" \
        --property=Restart=on-failure --property=RestartSec=1 --property=StartLimitIntervalSec=0 \
        --property='RestartForceExitStatus=SIGTERM SIGHUP SIGINT SIGPIPE' --property=TimeoutStopSec=5 \
        /bin/sh -c "[ ! -e '$script' ] || . '$script'" 2>&1 9>&-) || {
        [ "$first" = no ] || forget_guard
        fail 99 "$refused"
    }
    deadline=$written
    exec 9>&-
    acknowledged
}

# baseline RESOURCE PEER_NODE_ID: the data's generation of each volume, when the guard was armed first.
baseline() {
    look "$1"
    for device in $devices; do
        generation=''
        [ ! -e "$orders" ] || generation=$(sed -n "s/^gen $1 ${device%%:*} //p" "$orders")
        [ -n "$generation" ] || generation_now "$1" "$2" "$device"
        say "gen $1 ${device%%:*} $generation"
    done
}

# guard UUID: the service.
guard() {
    # Nothing may keep it waiting for ever.
    # shellcheck disable=SC2317 # called by the functions of node.sh
    drbdsetup() { timeout -k 5 30 drbdsetup "$@"; }
    names "$1"
    orders=$tokens/$uuid.guard
    acknowledged='' said='' inhibitor=''
    while [ -e "$orders" ]; do
        if read_token 2>/dev/null && lives; then
            tell "$deadline" ''
            sleep 0.5
            # Not at once: whoever armed it waits for its first word, and opens what it guards then.
            inhibit
            continue
        fi
        # The move is not alive any more: nobody's shutdown waits for what it has left.
        release
        # In a process of its own: whatever fails there is over with it, and so is the lock.
        words=$(try)
        case $? in
            "$is_over") exit 0 ;;
            0) tell "$acknowledged" "$words"; rest ;;
            "$goes_on") tell "$acknowledged" "$words"; sleep 0.2 ;;
            *) tell "$acknowledged" "looking or acting failed, see the journal"; rest ;;
        esac
    done
    # Disarmed; or the one before was killed while it removed its own files.
    release
    if [ -e "$tokens/$uuid.sh" ] || [ -e "$tokens/$uuid.seen" ]; then (locked "$uuid" leave); fi
}

# inhibit: no shutdown and no sleep of this node from now on, where systemd can do that; nothing here depends on it.  The
# lock is held by a process of the service, which ends with it however it ends.
inhibit() {
    [ -z "$inhibitor" ] || return 0
    inhibitor=none
    command -v systemd-inhibit >/dev/null || return 0
    # Beside what the move does here, and behind it.
    nice -n 19 systemd-inhibit --what=shutdown:sleep --mode=block --who=lvmigrate \
        --why="a guest is being moved ($uuid)" sleep infinity </dev/null >/dev/null &
    inhibitor=$!
}

# release: what `inhibit` holds back goes on; by name and number, as a number alone may be another's by now.
release() {
    case $inhibitor in '' | none) return 0 ;; esac
    read -r name <"/proc/$inhibitor/comm" 2>/dev/null || name=''
    [ "$name" != systemd-inhibit ] || kill "$inhibitor" 2>/dev/null
    inhibitor=''
}

# leave: nothing stays of a guard without orders.
leave() {
    [ -e "$orders" ] || forget_guard
    rm -f "$lock"
}

# rest: about two seconds; less if the token lives again, which is to be acknowledged soon.
rest() {
    for _half in 1 2 3 4; do
        sleep 0.5
        if read_token 2>/dev/null && lives; then return; fi
    done
}

# lives: after read_token; the same as ! expired, but while whole seconds are left no process is started to find out.
lives() {
    IFS=' ' read -r up _idle </proc/uptime
    case ${deadline%.*}/${up%.*} in
        */ | /* | *[!0-9/]*) ;;
        *) [ "${up%.*}" -ge "${deadline%.*}" ] || return 0 ;;
    esac
    ! expired
}

# tell DEADLINE WORDS: what the guard has seen, and what it says.
tell() {
    [ "$1/$2" != "$acknowledged/$said" ] || return 0
    [ "$2" = "$said" ] || say "${2:-the token lives}"
    acknowledged=$1 said=$2
    printf '%s\n' "$1" "$2" >"$tokens/$uuid.seen.new" && mv -f "$tokens/$uuid.seen.new" "$tokens/$uuid.seen"
}

# try: look, and do one thing if there is one to do.  What it says goes to stdout, everything else to the journal.
try() {
    # Without the lock first: a libvirt that hangs must keep nobody waiting.
    see_copy 60
    case $copy in
        busy | unknown) why_not; return 0 ;;
    esac
    locked "$uuid" look_and_act
}

look_and_act() {
    alive=no
    if read_token && ! expired; then alive=yes; fi
    [ "$alive" = no ] || return "$goes_on"
    told=$(cat "$orders") || return
    # Less than others wait for the lock; and all of it for whichever question takes a busy node long.
    see_copy $((patience > 3 ? patience - 1 : 2))
    wanted=' '
    each_link want_link
    opened=$(find_openers) || exit
    facts='' reasons=''
    each_link see_link
    whether_to_resume
    # shellcheck disable=SC2086 # facts are words
    decision=$(decide "$alive" "$may_resume" "$copy" $facts)
    case $decision in
        DEMOTE*)
            on_link "${decision#* }" demote >&2 || exit
            say "made this node Secondary"
            return "$goes_on"
            ;;
        RESTORE*)
            on_link "${decision#* }" restore >&2 || exit
            say "restored the options of a connection"
            return "$goes_on"
            ;;
        RESUME)
            libvirt 20 resume "$uuid" >&2 || exit 94
            say "let the guest run that waited here"
            return "$goes_on"
            ;;
        DISARM)
            # The token that ran out stays: it says what the move set out to do, and a cleanup reads it.  Under another id,
            # so that a command of the old holder that wakes up now is refused: nobody would close after it.
            if read_token; then
                { say "over-${id#over-}"; sed 1d "$token"; } >"$token.new" && mv -f "$token.new" "$token" || exit 94
            fi
            forget_guard
            rm -f "$token.new" "$lock"
            return "$is_over"
            ;;
    esac
    why_not
}

# whether_to_resume: after read_token, into $may_resume.  The token's word is the newer one: somebody may have let the guest
# run, or suspended it, since this guard was armed.
whether_to_resume() {
    may_resume=no
    case "$newline$told$newline" in
        *"${newline}resume never$newline"*) return ;;
        *"${newline}resume yes$newline"*) may_resume=yes ;;
    esac
    # shellcheck disable=SC2086 # an errand is words: source, target, whether it ran
    set -- $errand
    case ${3-} in yes | no) may_resume=$3 ;; esac
}

# why_not: why there is nothing to do yet.
why_not() {
    case $copy in
        busy) say "waits: libvirt has a job of the guest, or one arrives" ;;
        unknown) say "waits: libvirt gives no clear answer" ;;
        *) say "waits:${reasons:- $copy}" ;;
    esac
}

# each_link FUNCTION: with the words of each link in the orders.
each_link() {
    while IFS=' ' read -r key order; do
        # shellcheck disable=SC2086 # an order is words
        [ "$key" != link ] || "$1" $order || return
    done <<END
$told
END
}

# on_link NUMBER FUNCTION: with the words of that link; the first is 0.
on_link() {
    # shellcheck disable=SC2046 # an order is words
    "$2" $(printf '%s\n' "$told" | sed -n 's/^link //p' | sed -n "$(($1 + 1))p")
}

# decide ALIVE RESUME COPY LINK...: what lvmigrate.guard.decide says.  ALIVE and RESUME are yes or no, COPY is left, none,
# waits, lives, busy or unknown, a LINK is seven digits, each 1 if so: primary, held, connected, peer secondary, in step,
# unbroken, changed.
decide() {
    if [ "$1" = yes ]; then say SLEEP; return; fi
    waits=no
    [ "$2$3" != yeswaits ] || waits=yes
    copy=$3
    shift 3
    case $copy in
        busy | unknown) say WAIT; return ;;
    esac
    index=0
    for link; do
        case $copy/$link in none/10????? | left/10?????) say "DEMOTE $index"; return ;; esac
        index=$((index + 1))
    done
    index=0
    for link; do
        case $waits/$copy/$link in
            yes/*) ;;
            no/*/??11??1 | no/left/0?1???1) say "RESTORE $index"; return ;;
        esac
        index=$((index + 1))
    done
    whole=yes idle=yes
    for link; do
        case $link in 1?11110) ;; *) whole=no ;; esac
        case $link in 0?????0 | 11????0) ;; *) idle=no ;; esac
    done
    case $waits/$whole/$idle in
        yes/yes/*) say RESUME ;;
        no/*/yes) say DISARM ;;
        *) say WAIT ;;
    esac
}

# ---- what the guard sees

# libvirt SECONDS COMMAND...
libvirt() {
    within=$1
    shift
    timeout -k 2 "$within" virsh -q -c qemu:///system "$@" </dev/null
}

# libvirt_by UPTIME COMMAND...: as libvirt, for as long as there is time until then.
libvirt_by() {
    IFS=' ' read -r up _idle </proc/uptime
    within=$(($1 - ${up%.*}))
    shift
    [ "$within" -gt 0 ] && libvirt "$within" "$@"
}

# see_copy SECONDS: this node's copy of the guest, into $copy, looked at for so long in all.  Anything but a clear answer
# is no answer.
see_copy() {
    copy=unknown
    IFS=' ' read -r up _idle </proc/uptime
    by=$((${up%.*} + $1))
    active=$(libvirt_by "$by" list --uuid 2>/dev/null) || return 0
    case "$newline$active$newline" in
        *"$newline$(say "$uuid" | tr A-F a-f)$newline"*) ;;
        *) see_end; return 0 ;;
    esac
    state=$(libvirt_by "$by" domstate --reason "$uuid" 2>/dev/null) || return 0
    # One that arrives answers with an error.
    copy=busy
    job=$(libvirt_by "$by" domjobinfo "$uuid" 2>/dev/null) || return 0
    # shellcheck disable=SC2086 # words
    set -- $job
    [ "$*" = "Job type: None" ] || return 0
    case $state in
        'paused (user)') copy=waits ;;
        'shut off'* | 'no state'* | '') copy=unknown ;;
        *) copy=lives ;;
    esac
}

# see_end: how a guest without a process ended, into $copy.  A transient one leaves no word.
see_end() {
    known=$(libvirt_by "$by" list --all --uuid 2>/dev/null) || return 0
    case "$newline$known$newline" in
        *"$newline$(say "$uuid" | tr A-F a-f)$newline"*) ;;
        *) copy=left; return 0 ;;
    esac
    state=$(libvirt_by "$by" domstate --reason "$uuid" 2>/dev/null) || return 0
    case $state in
        'shut off (migrated)') copy=left ;;
        'shut off'*) copy=none ;;
    esac
}

want_link() {
    if loaded && look_at "$1"; then want_devices "$1"; fi
}

# see_link, with the words of a link: a word of seven digits more in $facts, and what hinders in $reasons.  A resource
# that is not there has nothing to close.
see_link() {
    if ! loaded || ! look_at "$1"; then
        facts="$facts 0000000"
        reasons="$reasons there is no resource $1;"
        return
    fi
    primary=0 open=0 linked=0 peer_secondary=0 in_step=0 unbroken=1 changed=0
    [ "$role" != Primary ] || primary=1
    case "$newline$opened" in *"$newline$1 "*) open=1 ;; esac
    case "$connected " in *" $3 "*) linked=1 ;; esac
    weigh "$3"
    [ "$peer_role" != Secondary ] || peer_secondary=1
    [ "$whole" = no ] || in_step=1
    for device in $devices; do
        generation_now "$1" "$3" "$device"
        case "$generation/$newline$told$newline" in
            -/*) unbroken=0 ;;
            */*"${newline}gen $1 ${device%%:*} $generation$newline"*) ;;
            *) unbroken=0 ;;
        esac
    done
    shown=$(drbdsetup show "$1") || exit
    set_now "$3"
    # Without a connection there is nothing to restore; unset and C are the same.
    case $allowed/$protocol in
        none/* | "$4/$(protocol_of "$5")") ;;
        *) changed=1 ;;
    esac
    facts="$facts $primary$open$linked$peer_secondary$in_step$unbroken$changed"
    [ "$primary$open" != 11 ] || reasons="$reasons $1 is in use here;"
    [ "$linked" = 1 ] || reasons="$reasons $1 is not connected to $2;"
    [ "$linked$peer_secondary" != 10 ] || reasons="$reasons $2 is not Secondary for $1;"
    [ "$in_step" = 1 ] || reasons="$reasons $1 is not in step with $2;"
    [ "$copy$changed" != waits1 ] || reasons="$reasons $2 has not forbidden two primaries of $1: it did not hand over;"
    [ "$unbroken" = 1 ] || reasons="$reasons the data of $1 are not those of the beginning;"
}

# weigh PEER_NODE_ID: after look_at; $peer_role, and $whole: every volume Established and UpToDate at both ends.
weigh() {
    peer_role='' whole=yes volumes='' replicated=' '
    while read -r _action object words; do
        volume='' peer='' there='' disk='' peer_disk='' replication=''
        for word in $words; do
            case $object/$word in
                resource/suspended:no) ;;
                resource/suspended:* | device/quorum:no) whole=no ;;
                */volume:*) volume=${word#volume:} ;;
                */peer-node-id:*) peer=${word#peer-node-id:} ;;
                connection/role:*) there=${word#role:} ;;
                device/disk:*) disk=${word#disk:} ;;
                peer-device/peer-disk:*) peer_disk=${word#peer-disk:} ;;
                peer-device/replication:*) replication=${word#replication:} ;;
            esac
        done
        case $object/$peer in
            device/*)
                volumes="$volumes $volume"
                [ "$disk" = UpToDate ] || whole=no
                ;;
            connection/"$1") peer_role=$there ;;
            peer-device/"$1")
                replicated="$replicated$volume "
                [ "$replication/$peer_disk" = Established/UpToDate ] || whole=no
                ;;
        esac
    done <<END
$dump
END
    for volume in $volumes; do
        case $replicated in *" $volume "*) ;; *) whole=no ;; esac
    done
    case "$connected " in *" $1 "*) ;; *) whole=no ;; esac
}

# restore, with the words of a link.
restore() {
    look "$1"
    weigh "$3"
    [ "$peer_role" = Secondary ] || [ "$role" = Secondary ] || fail 96 "neither end of $1 is Secondary"
    net_options_connected "$1" "$3" "$7" "$8" "--protocol=$(protocol_of "$5")" "--allow-two-primaries=$4"
}

# protocol_of PROTOCOL: - stands for what is not set.
protocol_of() {
    case $1 in -) say C ;; *) say "$1" ;; esac
}
