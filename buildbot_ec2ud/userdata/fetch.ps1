# A part of instance.ps1, for a bootstrap script that the instance fetches.

# Fetch the bootstrap script, with retries, and verify it.
function Get-Script($url, $sha256) {
    Write-Phase 'fetch'
    # TLS 1.2, which older systems have, but do not use unless told to.
    [Net.ServicePointManager]::SecurityProtocol = [Net.ServicePointManager]::SecurityProtocol -bor 3072
    for ($pause = 1; ; $pause *= 2) {
        try {
            Invoke-WebRequest -UseBasicParsing -Uri $url -OutFile "$dir\bootstrap.ps1" -TimeoutSec 120
            break
        } catch {
            if ($pause -gt 64) { throw "cannot fetch ${url}: $_" }
            Start-Sleep $pause
        }
    }
    $sum = (Get-FileHash -Algorithm SHA256 "$dir\bootstrap.ps1").Hash
    if ($sha256 -and $sum -ne $sha256) { throw "$url has the wrong SHA-256: $sum" }
}
