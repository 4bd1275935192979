# Runs the bootstrap script of this machine, and ends the machine when nobody needs it any more. Made by buildbot-ec2ud.
#   instance.ps1 bootstrap -Began SECONDS     runs it; powers off when it fails
#   instance.ps1 watch -Port PORT [-Lifetime SECONDS] [-Orphan SECONDS] [-Spot]
#   instance.ps1 off REASON                   powers off
param([string]$Role, [string]$Reason, [long]$Began, [int]$Port, [long]$Lifetime, [long]$Orphan, [switch]$Spot)
$ErrorActionPreference = 'Stop'
$ProgressPreference = 'SilentlyContinue'
$dir = $PSScriptRoot
$metadata = 'http://169.254.169.254/latest'

# To the log file, and to the serial port that EC2 takes for the console.
function Write-Line($line) {
    try { [IO.File]::AppendAllText("$dir\log.txt", "$line`r`n") } catch {}
    try {
        $console = New-Object IO.Ports.SerialPort 'COM1', 115200
        $console.WriteTimeout = 1000
        $console.Open()
        $console.WriteLine($line)
    } catch {} finally { if ($console) { $console.Dispose() } }
}

function Write-Phase($name) {
    Write-Line "ec2ud: phase=$name t=$([DateTimeOffset]::UtcNow.ToUnixTimeSeconds() - $Began)"
}

function Stop-Machine($why) {
    Write-Line "ec2ud: $why; powering off"
    while ($true) {
        try { Stop-Computer -Force } catch {}
        Start-Sleep 60
        & shutdown.exe /s /f /t 0
        Start-Sleep 60
    }
}

# Ask the metadata service; nothing where it does not answer.
function Get-Metadata($path) {
    try {
        $life = @{ 'X-aws-ec2-metadata-token-ttl-seconds' = '60' }
        $token = Invoke-RestMethod -Method Put -Uri "$metadata/api/token" -Headers $life -TimeoutSec 2
        Invoke-RestMethod -Uri "$metadata/$path" -Headers @{ 'X-aws-ec2-metadata-token' = $token } -TimeoutSec 2
    } catch {}
}

# What the metadata service says of this machine; in a few seconds, or not at all.
function Get-Fact {
    $clock = [Diagnostics.Stopwatch]::StartNew()
    foreach ($fact in 'INSTANCE_ID=instance-id', 'AMI_ID=ami-id', 'REGION=placement/region',
        'AVAILABILITY_ZONE=placement/availability-zone', 'LOCAL_IPV4=local-ipv4', 'HOSTNAME=local-hostname') {
        $name, $path = $fact -split '='
        $value = ''
        if ($clock.Elapsed.TotalSeconds -lt 3) { $value = "$(Get-Metadata "meta-data/$path")".Trim() }
        # Something else may answer there.
        if ($value -notmatch '^[A-Za-z0-9._-]*$') { $value = '' }
        "BB_$name $value"
    }
}

# Only what is called travels.
'@PARTS@'

function Invoke-Bootstrap {
    Write-Phase 'start'
    $lines = [IO.File]::ReadAllLines("$dir\variables")
    Remove-Item -Force "$dir\variables"
    # cmd, so that what it says of its errors comes in its place. The variables are for it alone.
    $start = New-Object Diagnostics.ProcessStartInfo "$env:SystemRoot\System32\cmd.exe", ("/d /s /c `"`"$PSHOME\" +
        "powershell.exe`" -NoProfile -NonInteractive -ExecutionPolicy RemoteSigned -File `"$dir\bootstrap.ps1`" 2>&1`"")
    $start.UseShellExecute = $false
    $start.RedirectStandardOutput = $true
    $start.WorkingDirectory = $dir
    $variables = $start.EnvironmentVariables
    foreach ($line in @(Get-Fact) + $lines) {
        $name, $value = $line -split ' ', 2
        $variables[$name] = [regex]::Unescape($value)
    }
    $variables['EC2UD_START'] = "$Began"
    $variables['EC2UD_SWITCH'] = "$dir\instance.ps1"
    if ($variables['EC2UD_URL']) { Get-Script $variables['EC2UD_URL'] $variables['EC2UD_SHA256'] }
    Write-Phase 'bootstrap'
    $process = [Diagnostics.Process]::Start($start)
    while ($null -ne ($line = $process.StandardOutput.ReadLine())) { Write-Line $line }
    $process.WaitForExit()
    if ($process.ExitCode) { throw "the bootstrap script failed with status $($process.ExitCode)" }
}

# The connections of this machine to the master's port.
function Get-Connection {
    Get-NetTCPConnection | Where-Object { $_.State -eq 'Established' -and $_.RemotePort -eq $Port }
}

function Watch-Machine {
    # The metadata service is not behind a proxy.
    [Net.WebRequest]::DefaultWebProxy = $null
    $clock = [Diagnostics.Stopwatch]::StartNew()
    $seen = 0
    while ($true) {
        $now = [int]$clock.Elapsed.TotalSeconds
        if ($Lifetime -and $now -ge $Lifetime) { Stop-Machine "max_lifetime: $Lifetime s are over" }
        if ($Orphan) {
            # A machine whose connections cannot be seen is no orphan.
            try { if (Get-Connection) { $seen = $now } } catch { $seen = $now }
            if ($now - $seen -ge $Orphan) {
                Stop-Machine "orphan_timeout: no connection to the master for $($now - $seen) s"
            }
        }
        # Whatever goes wrong with one, the others go on.
        if ($Spot) { try { Test-Spot } catch { Write-Line "ec2ud: $_" } }
        Start-Sleep 5
    }
}

try {
    switch ($Role) {
        'bootstrap' { Invoke-Bootstrap }
        'watch' { Watch-Machine }
        'off' { Stop-Machine $Reason }
    }
} catch {
    Stop-Machine "$_"
}
