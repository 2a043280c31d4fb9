#!/bin/sh
# Makes the secrets that docker-compose.yml mounts, each once: a second run keeps
# what is there. Needs a POSIX shell and openssl.
#
#   sh deploy/compose/init.sh [directory, default ./secrets]
#
# The directory is for you alone (0700); the files in it can be read by everybody
# (0644), because Compose mounts each into its container as it is, where another
# user reads it.
set -eu
dir=${1:-secrets}
umask 077
mkdir -p "$dir"
chmod 700 "$dir"
cd "$dir"

have() { [ -s "$1" ]; }
random() { openssl rand -hex 24; }

# What seals refresh tokens in NATS. Lose it, and everybody has to authorize again.
if ! have encryption-keys; then
  echo "k1:$(openssl rand -base64 32)" > encryption-keys
  echo "made encryption-keys: back it up, apart from the NATS volume"
fi

# Redis: the worker's user may do what its locks need, the default user is off.
if ! have redis-url; then
  password=$(random)
  hash=$(printf %s "$password" | openssl dgst -sha256 -r | cut -d' ' -f1)
  echo "redis://worker:$password@redis:6379/0" > redis-url
  {
    echo "user default off resetchannels -@all"
    echo "user worker on #$hash ~zoho:* &zoho:* -@all +@connection +evalsha +eval +get +set +del +pexpire +pttl +publish +subscribe +unsubscribe"
  } > redis-users.acl
  echo "made redis-url, redis-users.acl"
fi

# Certificates: an authority of this installation, and one each for NATS, for its
# users (NATS tells them apart by the certificate), and for the simulator.
if ! have ca.crt; then
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -sha256 -days 3650 \
    -subj "/CN=zoho-worker Compose" -addext "keyUsage=critical,keyCertSign,cRLSign" -keyout ca.key -out ca.crt 2>/dev/null
  echo "made ca.crt, ca.key"
fi
certificate() { # name, common name, extended key usage, subject alternative names
  have "$1.crt" && return
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -sha256 -subj "/CN=$2" -keyout "$1.key" -out "$1.csr" 2>/dev/null
  printf 'basicConstraints=CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=%s\nsubjectAltName=%s\n' "$3" "$4" > "$1.ext"
  openssl x509 -req -sha256 -days 825 -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -extfile "$1.ext" -out "$1.crt" 2>/dev/null
  rm -f "$1.csr" "$1.ext"
  echo "made $1.crt, $1.key"
}
certificate nats nats serverAuth DNS:nats,DNS:localhost,IP:127.0.0.1
certificate simulator simulator serverAuth DNS:simulator,DNS:localhost
# The names are those of deploy/nats/accounts.conf, which says what each may do.
certificate worker worker clientAuth DNS:worker.zoho-worker
certificate observer observer clientAuth DNS:observer.zoho-worker
certificate backup backup clientAuth DNS:backup.zoho-worker
certificate acme acme clientAuth DNS:acme.zoho-worker

if ! have zoho-client-secret; then
  echo sandbox > zoho-client-secret
  echo "made zoho-client-secret: good for the simulator; put yours from Zoho's API console in"
fi
if ! [ -e console-users ]; then
  : > console-users
  echo "made console-users, empty: htpasswd -nB -C 12 NAME > console-users lets NAME into the console"
fi
if ! have grafana-admin-password; then
  random > grafana-admin-password
  echo "made grafana-admin-password"
fi

chmod 644 ./*
# Signs whatever it is asked to, and callers' own: no container gets these.
chmod 600 ca.key acme.key observer.key backup.key
