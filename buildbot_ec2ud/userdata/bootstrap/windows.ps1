#!powershell
# Makes a Buildbot worker of a vanilla Windows Server image: installs Python, and buildbot-worker in a virtualenv of its
# own, makes an unprivileged account and starts the worker. What the image has already, it does not install. Git and
# compilers are BB_PACKAGES's or BB_SETUP's. Untested on Windows.
#
# Variables: BB_MASTER, BB_NAME, BB_PASSWORD as always, BB_TLS_CERT (certificates in PEM form to trust for the master);
#   BB_PACKAGES          packages to install with Chocolatey, separated by blanks; the image has to have that
#   BB_SETUP             PowerShell commands to run as the system before the worker starts, or the URL of such a script
#   BB_SETUP_SHA256      checksum of that; plain http needs one
#   BB_PYTHON_INSTALLER  URL of an installer as python.org has them; one of theirs unless given
#   BB_PYTHON_SHA256     its checksum; without one, it has to be signed
#   BB_WORKER_VERSION    version of buildbot-worker; the newest unless given
#   BB_WORKER_INDEX      index to get it from; BB_WORKER_WHEELS: directory or URL of wheels, and no index
# ec2ud: without comments
$ErrorActionPreference = 'Stop'
$ProgressPreference = 'SilentlyContinue'
$password = $env:BB_PASSWORD
Remove-Item Env:BB_PASSWORD # nothing that is installed or built needs it
$root = "$env:SystemDrive\buildbot-worker" # short: Windows takes no long paths
$worker = "$root\worker"
$account = 'buildbot'

function Write-Phase($name) {
    "ec2ud: phase=$name t=$([DateTimeOffset]::UtcNow.ToUnixTimeSeconds() - [long]$env:EC2UD_START)"
}

# Run a program, and fail when it does.
function Invoke-Program($program, $arguments) {
    & $program @arguments
    if ($LASTEXITCODE) { throw "$program failed with status $LASTEXITCODE" }
}

# Let but those who are given look into a directory, and the system (S-1-5-18) and administrators (S-1-5-32-544).
function Protect-Directory($path, $more) {
    New-Item -ItemType Directory -Force $path | Out-Null
    $grants = @('*S-1-5-18:(OI)(CI)F', '*S-1-5-32-544:(OI)(CI)F') + $more
    Invoke-Program 'icacls.exe' (@($path, '/inheritance:r', '/grant:r') + $grants) | Out-Null
}

# A Python that is there; that of the Microsoft Store is none but an advertisement.
function Find-Python {
    $found = @("$root\python\python.exe") + @(Get-Command python.exe -All -ErrorAction SilentlyContinue).Source
    $found | Where-Object { $_ -and $_ -notlike '*\WindowsApps\*' -and (Test-Path $_) } | Select-Object -First 1
}

# Fetch a file, with retries, and verify it where a checksum is given.
function Get-File($url, $file, $sha256) {
    # TLS 1.2, which older systems have, but do not use unless told to.
    [Net.ServicePointManager]::SecurityProtocol = [Net.ServicePointManager]::SecurityProtocol -bor 3072
    for ($pause = 1; ; $pause *= 2) {
        try {
            Invoke-WebRequest -UseBasicParsing -Uri $url -OutFile $file -TimeoutSec 600
            break
        } catch {
            if ($pause -gt 16) { throw "cannot fetch ${url}: $_" }
            Start-Sleep $pause
        }
    }
    $sum = (Get-FileHash -Algorithm SHA256 $file).Hash
    if ($sha256 -and $sum -ne $sha256) { throw "$url has the wrong SHA-256: $sum" }
}

function Install-Python {
    $url = $env:BB_PYTHON_INSTALLER
    if (-not $url) { $url = 'https://www.python.org/ftp/python/3.12.10/python-3.12.10-amd64.exe' }
    $file = "$root\python-installer.exe"
    Get-File $url $file $env:BB_PYTHON_SHA256
    if (-not $env:BB_PYTHON_SHA256 -and (Get-AuthenticodeSignature $file).Status -ne 'Valid') {
        throw "$url is not signed: give BB_PYTHON_SHA256"
    }
    $options = '/quiet', 'InstallAllUsers=1', "TargetDir=$root\python", 'Include_test=0', 'Include_launcher=0'
    $status = (Start-Process $file -ArgumentList $options -Wait -PassThru).ExitCode
    if ($status -notin 0, 3010) { throw "the installer of Python failed with status $status" } # 3010: restart wanted
    Remove-Item -Force $file
}

if ("$env:BB_MASTER$env:BB_NAME" -match '"') { throw 'BB_MASTER and BB_NAME cannot have a " in them' }
Protect-Directory $root '*S-1-5-32-545:(OI)(CI)RX' # users
$program = "$root\venv\Scripts\buildbot-worker.exe"
if (-not (Test-Path $program)) { $program = (Get-Command buildbot-worker.exe -ErrorAction SilentlyContinue).Source }
if (-not $program) {
    Write-Phase 'install-python'
    if (-not (Find-Python)) { Install-Python }
    Write-Phase 'install-worker'
    Invoke-Program (Find-Python) ('-m', 'venv', "$root\venv")
    $what = 'buildbot-worker'
    if ($env:BB_TLS_CERT) { $what += '[tls]' }
    if ($env:BB_WORKER_VERSION) { $what += "==$env:BB_WORKER_VERSION" }
    $from = @()
    if ($env:BB_WORKER_INDEX) { $from = '--index-url', $env:BB_WORKER_INDEX }
    if ($env:BB_WORKER_WHEELS) { $from = '--no-index', '--find-links', $env:BB_WORKER_WHEELS }
    Invoke-Program "$root\venv\Scripts\python.exe" (@('-m', 'pip', '-q', 'install') + $from + $what)
    $program = "$root\venv\Scripts\buildbot-worker.exe"
}

if ($env:BB_PACKAGES) {
    Write-Phase 'packages'
    if (-not (Get-Command choco.exe -ErrorAction SilentlyContinue)) {
        throw 'BB_PACKAGES: the image has no Chocolatey; install with BB_SETUP'
    }
    Invoke-Program 'choco.exe' (@('install', '-y', '--no-progress') + ($env:BB_PACKAGES.Trim() -split '\s+'))
}

if ($env:BB_SETUP) {
    Write-Phase 'setup'
    if ($env:BB_SETUP -match '^https?://\S+$') {
        if ($env:BB_SETUP -match '^http:' -and -not $env:BB_SETUP_SHA256) {
            throw 'BB_SETUP: anybody on the way can change what comes by plain http: give BB_SETUP_SHA256'
        }
        Get-File $env:BB_SETUP "$root\setup.ps1" $env:BB_SETUP_SHA256
    } else {
        $text = "`$ErrorActionPreference = 'Stop'`n$env:BB_SETUP`n"
        [IO.File]::WriteAllText("$root\setup.ps1", $text, (New-Object Text.UTF8Encoding $true))
    }
    $options = '-NoProfile', '-NonInteractive', '-ExecutionPolicy', 'RemoteSigned', '-File', "$root\setup.ps1"
    Invoke-Program "$PSHOME\powershell.exe" $options
}

Write-Phase 'start-worker'
$login = "$([guid]::NewGuid())Aa1!" # of the account; known to nobody but Task Scheduler
$secure = ConvertTo-SecureString $login -AsPlainText -Force
if (Get-LocalUser $account -ErrorAction SilentlyContinue) { Set-LocalUser $account -Password $secure }
else { New-LocalUser $account -Password $secure -PasswordNeverExpires | Out-Null }
# Users; and performance log users, who may run a task without being logged in.
foreach ($group in 'S-1-5-32-545', 'S-1-5-32-559') {
    if ((Get-LocalGroupMember -SID $group).Name -notcontains "$env:COMPUTERNAME\$account") {
        Add-LocalGroupMember -SID $group -Member $account
    }
}
Protect-Directory $worker "${account}:(OI)(CI)M"
$options = 'create-worker', '--relocatable', '--allow-shutdown=file', $worker, $env:BB_MASTER, $env:BB_NAME, 'from-file'
Invoke-Program $program $options | Out-Null
# The password goes through a file that is gone when the worker has read it: not through argv, the worker's environment
# or its tac.
$tac = [IO.File]::ReadAllText("$worker\buildbot.tac") -replace '(?m)^passwd = .*$', (
    "with open(os.path.join(basedir, '.password'), encoding='utf-8') as f: passwd = f.read()`nos.unlink(f.name)")
if ($env:BB_TLS_CERT -eq 'system') {
    throw 'BB_TLS_CERT: OpenSSL finds no certificates of the system on Windows: give those to trust'
} elseif ($env:BB_TLS_CERT) {
    New-Item -ItemType Directory -Force "$worker\trusted" | Out-Null
    [IO.File]::WriteAllText("$worker\trusted\master.pem", $env:BB_TLS_CERT)
    $tac = $tac -replace '(?m)^connection_string = .*$', (
        "from twisted.internet.endpoints import quoteStringArgument as q`n" +
        "connection_string = 'tls:%s:%d:trustRoots=%s' % (" +
        "q(buildmaster_host), port, q(os.path.join(basedir, 'trusted').replace(os.sep, '/')))`n" +
        "buildmaster_host = port = None")
}
[IO.File]::WriteAllText("$worker\buildbot.tac", $tac)
[IO.File]::WriteAllText("$worker\.password", $password)
if ($env:EC2UD_SWITCH) { [IO.File]::WriteAllText("$(Split-Path $env:EC2UD_SWITCH)\worker", $worker) }

$task = 'buildbot-worker'
$action = New-ScheduledTaskAction -Execute $program -Argument "start --nodaemon `"$worker`"" -WorkingDirectory $worker
$settings = New-ScheduledTaskSettingsSet -ExecutionTimeLimit ([TimeSpan]::Zero) -Priority 5 `
    -AllowStartIfOnBatteries -DontStopIfGoingOnBatteries
Register-ScheduledTask -TaskName $task -Action $action -Settings $settings -Force `
    -User "$env:COMPUTERNAME\$account" -Password $login | Out-Null
Start-ScheduledTask $task
for ($tries = 0; (Get-ScheduledTask $task).State -ne 'Running'; $tries++) {
    if ($tries -ge 30) {
        throw "the worker does not start: $((Get-ScheduledTaskInfo $task).LastTaskResult)"
    }
    Start-Sleep 1
}
# The machine goes when the worker has ended.
while ((Get-ScheduledTask $task).State -eq 'Running') { Start-Sleep 2 }
if (-not $env:EC2UD_SWITCH) { Stop-Computer -Force }
& "$PSHOME\powershell.exe" -NoProfile -NonInteractive -ExecutionPolicy RemoteSigned -File $env:EC2UD_SWITCH off `
    'the worker has ended'
