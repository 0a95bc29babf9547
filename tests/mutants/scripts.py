"""Mutants of what runs on the nodes, storage/node.sh and storage/guard.sh; their unit tests are to catch them.

Not here, because nothing outside can tell: the second look whether the token lives, under the lock (`decide` is told
so and sleeps as well); and the order of a file's replacement (`mv` of a whole one), which only a reader in the same
microsecond would notice.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tests.mutants.mutant import Mutant

#: By name: what stands there, and what is there instead.
_NODE: Final = {
    "take_token: a living one is not respected": ('if read_token && [ "$id" != "$1" ] && ! expired; then', "if false; then"),
    "take_token: our own is somebody else's": ('if read_token && [ "$id" != "$1" ] && ! expired; then', "if read_token && ! expired; then"),
    "take_token: one that ran out is not taken": ('[ "$id" != "$1" ] && ! expired; then', '[ "$id" != "$1" ]; then'),
    "take_token: whoever names any other one": ('[ -z "$replaces" ] || [ "$id" != "$replaces" ]', '[ -z "$replaces" ]'),
    "take_token: nobody may name one": ('if [ -z "$replaces" ] || [ "$id" != "$replaces" ]; then', "if true; then"),
    "take_token: the first one is told, and taken": ("            tell_token\n            exit 93\n", "            tell_token\n"),
    "take_token: nothing is written": ('    write_token "$@" || exit 94\n}\n\n# tell_token', "    :\n}\n\n# tell_token"),
    "need_token: no token is as good": ('        rm -f "$lock"\n        fail 91 "there is no token"\n', '        rm -f "$lock"\n        return\n'),
    "need_token: another one is as good": ('    [ "$id" = "$1" ] || fail 91 "it belongs to $holder"\n', ""),
    "renew_token: of anybody's": ('    need_token "$1"\n    write_token', "    write_token"),
    "renew_token: the deadline stays": ('    need_token "$1"\n    write_token "$@" || exit 94\n', '    need_token "$1"\n'),
    "renew_token: without the guard's word": ('    [ "$guarded" = no ] || acknowledged\n', ""),
    "drop_token: anybody's": ('if read_token && [ "$id" != "$1" ]; then\n        return', "if false; then\n        return"),
    "drop_token: it stays": ('    rm -f "$token" "$lock"\n}', "    :\n}"),
    "locked: without the lock": ('        flock -w "$patience" 9 || fail 92 "$lock is held by another command"\n', ""),
    "locked: a file without a name is as good": ('[ "$lock" -ef /proc/self/fd/9 ] && break', "break"),
    "expired: one that nobody can read has": ("expired() { left && [", "expired() { ! left || ["),
    "expired: never": ('expired() { left && [ "$left" -le 0 ]; }', "expired() { false; }"),
    "write_token: without the lease": ("end=$((hundredths + $3))", "end=$hundredths"),
    "with_token: anybody's": ('checked() {\n    need_token "$ours"\n', "checked() {\n    read_token\n"),
    "acknowledged: at once": ('        [ "$seen" != "$written" ] || return 0\n', "        return 0\n"),
    "acknowledged: a guard that is silent is one": ('    fail 98 "the guard has not seen', '    : 98 "the guard has not seen'),
    "stop_guard: it goes on": ('    systemctl stop "$(unit)" 2>/dev/null\n', ""),
    "stop_guard: whether it has stopped does not matter": ('        *) fail 94 "the service $(unit) is', '        *) : 94 "the service $(unit) is'),
    "disarm: its service goes on": ("|| return 0\n    stop_guard\n", "|| return 0\n"),
    "disarm: its files stay": ('    rm -f "$tokens/$uuid.guard" "$tokens/$uuid.seen" "$tokens/$uuid.sh"\n', ""),
    "guard_trouble: without systemd": ('        say "systemd is not its first process"\n        return\n', "        :\n"),
    "traces: a guard that was killed is alive": ("        running=no\n", "        running=yes\n"),
    "need_drbd: no module is as good": ('    loaded || fail 90 "the drbd module is not loaded"\n', ""),
    "look: no resource is as good": ('look_at "$1" || fail 95', 'look_at "$1" || : 95'),
    "each: 9 one minor at a time": ("        8.*) for device in $devices; do drbdsetup", "        *) for device in $devices; do drbdsetup"),
    "each: 8.4 as 9": ("        8.*) for device in $devices; do drbdsetup", "        7.*) for device in $devices; do drbdsetup"),
    "demote: whoever has it open": ("        found=$(find_openers) || exit\n", "        found=''\n"),
    "demote: a look that failed is as good": ("        found=$(find_openers) || exit\n", "        found=$(find_openers)\n"),
    "demote: what is Secondary again": ('    [ "$role" != Secondary ] || return 0\n', ""),
    "demote: the kernel's no is a yes": ('            refused=$(each secondary "$1" 2>&1) && return 0\n', '            refused=$(each secondary "$1" 2>&1); return 0\n'),
    "demote: another no is tried again": ('                *) fail "$status" "$refused" ;;\n', "                *) ;;\n"),
    "demote: it gives up at once": ("    for _try in 1 2 3 4 5 6; do\n", "    for _try in 1; do\n"),
    "net_options_connected: during a cut": ('        *) fail 96 "the connection is not Connected" ;;\n', ""),
    "reconnect: 8.4, whatever it is": ("case $dump in *' connection:StandAlone'* ) ;; *' connection:'*) return 0 ;; esac\n", "\n"),
    "reconnect: 9, whatever it is": ("*' connection:StandAlone'*) ;; *) return 0 ;; esac\n            drbdsetup net", "*) ;; esac\n            drbdsetup net"),
    "reconnect: 9, without its options": ('drbdsetup net-options "$name" "$peer" "$@" && drbdsetup connect', "drbdsetup connect"),
    "generation_now: with the bit of the role": ("        *[Ff]) generation=${generation%?}E ;;\n", ""),
    "generation_now: with the bit of the role, 1": ("        *1) generation=${generation%?}0 ;;\n", ""),
    "generation_now: with the bit of the role, D": ("        *[Dd]) generation=${generation%?}C ;;\n", ""),
    "by_processes: tools that do nothing are as good": ('        *) fail 94 "find or stat does not do what GNU\'s do" ;;\n', "        *) ;;\n"),
    "openers: no processes": ("find_openers() {\n    by_processes || return\n", "find_openers() {\n"),
    "openers: nothing but processes": ("    by_processes || return\n    by_kernel\n", "    by_processes\n"),
    "by_kernel: no mounts": ('            held "d$number" "${source%% *}" "mounted on $point"\n', "            :\n"),
    "by_kernel: no loop devices": ('            held - "$source" "behind the device ${loop%%/*}"\n', "            :\n"),
    "by_kernel: one mount namespace": ('            case $known in *" $space "*) ;; *) known="$known$space " ;; esac\n', '            known="$known$spaces "\n'),
    "until_eof: the child goes on": ('        kill "$child"\n', "        :\n"),
    "until_eof: its status is lost": ('    return "$status"\n}\n', "    return 0\n}\n"),
}  # fmt: skip

_GUARD: Final = {
    "arm: two guards": ("        first=no\n        stop_guard\n", "        first=no\n"),
    "arm: compares with what is there now": ('        [ ! -e "$orders" ] || generation=$(sed', "        : || generation=$(sed"),
    "arm: without its acknowledgement": ("    deadline=$written\n    exec 9>&-\n    acknowledged\n", "    deadline=$written\n"),
    "arm: a refusal is as good": ('        fail 99 "$refused"\n', "        return\n"),
    "arm: a refusal leaves its files": ('        [ "$first" = no ] || rm -f "$orders" "$script"\n', ""),
    "guard: acts while the token lives": ("        if read_token 2>/dev/null && lives; then\n            tell", "        if false; then\n            tell"),
    "guard: acknowledges nothing": ("            tell \"$deadline\" ''\n", "            :\n"),
    "lives: one that ran out": ("    ! expired\n}\n\n# tell", "    true\n}\n\n# tell"),
    "try: while libvirt is busy": ("        busy | unknown) why_not; return 0 ;;\n", "        never) ;;\n"),
    "decide: while the token lives": ('    if [ "$1" = yes ]; then say SLEEP; return; fi\n', ""),
    "decide: without an order to resume": ('    [ "$2$3" != yeswaits ] || waits=yes\n', '    [ "$3" != waits ] || waits=yes\n'),
    "decide: resumes what does not wait": ('    [ "$2$3" != yeswaits ] || waits=yes\n', '    [ "$2" != yes ] || waits=yes\n'),
    "decide: while libvirt is busy": ("        busy | unknown) say WAIT; return ;;\n", "        never) ;;\n"),
    "decide: demotes what is held": ("case $copy/$link in none/10?????)", "case $copy/$link in none/1??????)"),
    "decide: demotes a Secondary": ("case $copy/$link in none/10?????)", "case $copy/$link in none/?0?????)"),
    "decide: demotes under a guest": ("case $copy/$link in none/10?????)", "case $copy/$link in */10?????)"),
    "decide: restores during a cut": ("case $link in ??11??1) say", "case $link in ???1??1) say"),
    "decide: restores beside a Primary": ("case $link in ??11??1) say", "case $link in ??1???1) say"),
    "decide: restores what is as before": ("case $link in ??11??1) say", "case $link in ??11???) say"),
    "decide: resumes without its role": ("case $link in 1?1111?) ;; *) whole=no", "case $link in ??1111?) ;; *) whole=no"),
    "decide: resumes during a cut": ("case $link in 1?1111?) ;; *) whole=no", "case $link in 1??111?) ;; *) whole=no"),
    "decide: resumes beside a Primary": ("case $link in 1?1111?) ;; *) whole=no", "case $link in 1?1?11?) ;; *) whole=no"),
    "decide: resumes out of step": ("case $link in 1?1111?) ;; *) whole=no", "case $link in 1?11?1?) ;; *) whole=no"),
    "decide: resumes on other data": ("case $link in 1?1111?) ;; *) whole=no", "case $link in 1?111??) ;; *) whole=no"),
    "decide: ends while options are changed": ("case $link in 0?????0 | 11????0) ;;", "case $link in 0?????? | 11?????) ;;"),
    "decide: ends as an unused Primary": ("case $link in 0?????0 | 11????0) ;;", "case $link in 0?????0 | 1?????0) ;;"),
    "decide: ends while one waits": ("        no/*/yes) say DISARM ;;\n", "        */*/yes) say DISARM ;;\n"),
    "look_and_act: the old id is as good": ('{ say "over-${id#over-}"; sed 1d "$token"; }', '{ say "$id"; sed 1d "$token"; }'),
    "look_and_act: nothing is removed at the end": ('            rm -f "$orders" "$tokens/$uuid.seen" "$tokens/$uuid.sh" "$lock"\n', ""),
    "look_and_act: any order is one to resume": ("    may_resume=no\n", "    may_resume=yes\n"),
    "see_copy: a silent libvirt knows none": ("list --uuid 2>/dev/null) || return 0\n", "list --uuid 2>/dev/null)\n"),
    "see_copy: one that arrives has no job": ("    copy=busy\n", "    copy=lives\n"),
    "see_copy: any job is none": ('    [ "$*" = "Job type: None" ] || return 0\n', ""),
    "see_copy: whatever is paused waits": ("        'paused (user)') copy=waits ;;\n", "        'paused'*) copy=waits ;;\n"),
    "see_copy: no state is a clear answer": ("        'shut off'* | 'no state'* | '') copy=unknown ;;\n", ""),
    "see_link: never Primary": ('    [ "$role" != Primary ] || primary=1\n', ""),
    "see_link: never open": ('    case "$newline$opened" in *"$newline$1 "*) open=1 ;; esac\n', ""),
    "see_link: always connected": ('    case "$connected " in *" $3 "*) linked=1 ;; esac\n', "    linked=1\n"),
    "see_link: the peer always Secondary": ('    [ "$peer_role" != Secondary ] || peer_secondary=1\n', "    peer_secondary=1\n"),
    "see_link: always in step": ('    [ "$whole" = no ] || in_step=1\n', "    in_step=1\n"),
    "see_link: any generation": ('            */*"${newline}gen $1 ${device%%:*} $generation$newline"*) ;;\n            *) unbroken=0 ;;\n', "            *) ;;\n"),
    "see_link: options never changed": ("        *) changed=1 ;;\n", "        *) ;;\n"),
    "see_link: a resource that is gone hinders": ('        facts="$facts 0000000"\n', '        facts="$facts 0000001"\n'),
    "weigh: suspended is as good": ("                resource/suspended:* | device/quorum:no) whole=no ;;\n", ""),
    "weigh: without quorum": ("resource/suspended:* | device/quorum:no) whole=no", "resource/suspended:*) whole=no"),
    "weigh: any disk here": ('                [ "$disk" = UpToDate ] || whole=no\n', ""),
    "weigh: any disk there": ('[ "$replication/$peer_disk" = Established/UpToDate ]', '[ "$replication" = Established ]'),
    "weigh: any replication": ('[ "$replication/$peer_disk" = Established/UpToDate ]', '[ "$peer_disk" = UpToDate ]'),
    "weigh: a volume that is not replicated": ('        case $replicated in *" $volume "*) ;; *) whole=no ;; esac\n', "        :\n"),
    "restore: beside a Primary": ('    [ "$peer_role" = Secondary ] || fail 96 "$2 is not Secondary for $1"\n', ""),
    "restore: another protocol": ('"--protocol=$(protocol_of "$5")"', "--protocol=C"),
    "protocol_of: what was not set": ("case $1 in -) say C ;;", "case $1 in"),
}  # fmt: skip


def mutants() -> Iterator[Mutant]:
    """All of them."""
    for file, changes in (("node.sh", _NODE), ("guard.sh", _GUARD)):
        for name, (old, new) in changes.items():
            yield Mutant(name=f"{file} {name}", file=f"storage/{file}", old=old, new=new)
