#!/bin/sh
# The report is tested in a real browser. Finds Chromium, or installs Debian's where that is allowed.
for name in chromium chromium-browser google-chrome; do
    command -v "$name" >/dev/null 2>&1 && exit 0
done
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "installing chromium for the report's browser test"
    apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null && exit 0
fi
echo "the report's browser test needs Chromium: install it (Debian and Ubuntu: sudo apt-get install chromium)" >&2
exit 1
