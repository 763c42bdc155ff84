#!/bin/bash
# Cairn with its defaults: three masters, NCS chunkservers (3), three copies, durable. What is deleted is gone at once,
# as with the others.
# usage: cairn.sh up|pids|remount|kill|revive|degraded|down BASE ; the mount is BASE/mnt
# env: CAIRN=path of the binary (default: cairn from PATH)  NCS=3  MOUNTOPT=
set -u; cmd=$1; B=$2; P=$(cd "$(dirname "$0")" && pwd)/prio.sh; C=${CAIRN:-cairn}; renice -n ${NICE:--15} $$ > /dev/null
mnt() { setsid sh $P $C --cluster $B/c mount ${MOUNTOPT:-} $B/mnt > $B/client.log 2>&1 & echo $! > $B/client.pid
 for i in $(seq 100); do mountpoint -q $B/mnt && return; sleep 0.1; done; echo "mount failed" >&2; tail -3 $B/client.log >&2; return 1; }
umnt() { umount $B/mnt || umount -l $B/mnt; local p=$(cat $B/client.pid); for i in $(seq 100); do kill -0 $p 2>/dev/null || return 0; sleep 0.1; done; kill $p; }
# All processes of a server: the parent, and the worker that it started.
of() { for p in $(cat /proc/$(cat $B/up.pid)/task/*/children) $(cat $B/cs?.pid 2>/dev/null); do
  case $(tr '\0' ' ' < /proc/$p/cmdline 2>/dev/null) in *"$B/c/$1"*) echo "$p $(cat /proc/$p/task/*/children)";; esac; done; }
case $cmd in
up) mkdir -p $B/mnt
 setsid sh $P $C up --dir $B/c --chunkservers ${NCS:-3} > $B/up.log 2>&1 & echo $! > $B/up.pid
 for i in $(seq 300); do [ -e $B/c/up.ready ] && break; sleep 0.1; done
 [ -e $B/c/up.ready ] || { tail -5 $B/up.log >&2; exit 1; }
 $C --cluster $B/c admin policy / --trash off; mnt;;
pids) for p in $(of m); do echo "master $p"; done; for p in $(of cs); do echo "chunkserver $p"; done; echo "client $(cat $B/client.pid)";;
remount) umnt; mnt;;
umount) umnt;;
kill) k=$(cat $B/next 2>/dev/null || echo 1); kill -9 $(of cs$k); echo $k > $B/dead; echo $((k % ${NCS:-3} + 1)) > $B/next;;
revive) k=$(cat $B/dead); setsid sh $P $C chunkserver --config $B/c/cs$k/config.toml > $B/cs$k.log 2>&1 & echo $! > $B/cs$k.pid;;
degraded) $C --cluster $B/c --json admin status | python3 -c 'import json,sys; print(max(m.get("degraded", 0) for m in map(json.loads, sys.stdin)))';;
down) umnt 2>/dev/null; for p in $(cat $B/cs?.pid 2>/dev/null) $(cat $B/up.pid); do kill $p; for i in $(seq 100); do kill -0 $p 2>/dev/null || break; sleep 0.1; done; done; rm -rf "$B";;
esac
