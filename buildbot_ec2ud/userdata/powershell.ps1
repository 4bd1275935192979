# Turns this machine into a Buildbot worker: starts a bootstrap script, and what ends the machine. By buildbot-ec2ud.
# EC2's agent waits for this script: it only registers and starts scheduled tasks, which go on without it.
$ErrorActionPreference = 'Stop'
$dir = "$env:ProgramData\buildbot-ec2ud"
$began = [DateTimeOffset]::UtcNow.ToUnixTimeSeconds()

# With a byte order mark: without one, Windows PowerShell takes a script for one in the system's code page.
function Write-Own($name, $text) {
    [IO.File]::WriteAllText("$dir\$name", $text, (New-Object Text.UTF8Encoding $true))
}

function Start-Own($role, $options, $more) {
    $task = @{
        TaskName = "buildbot-ec2ud-$role"
        Action = New-ScheduledTaskAction -Execute "$PSHOME\powershell.exe" -Argument `
            "-NoProfile -NonInteractive -ExecutionPolicy RemoteSigned -File `"$dir\instance.ps1`" $role $options"
        Principal = New-ScheduledTaskPrincipal -UserId 'S-1-5-18' -LogonType ServiceAccount -RunLevel Highest
        Settings = New-ScheduledTaskSettingsSet -ExecutionTimeLimit ([TimeSpan]::Zero) -Priority 5 `
            -AllowStartIfOnBatteries -DontStopIfGoingOnBatteries
    }
    Register-ScheduledTask @task @more -Force | Out-Null
    Start-ScheduledTask $task.TaskName
}

try {
    New-Item -ItemType Directory -Force $dir | Out-Null
    # Nobody looks in but the system (S-1-5-18) and administrators (S-1-5-32-544).
    & icacls.exe $dir /inheritance:r /grant:r '*S-1-5-18:(OI)(CI)F' '*S-1-5-32-544:(OI)(CI)F' | Out-Null
    if ($LASTEXITCODE) { throw "cannot protect $dir" }
    Write-Own 'instance.ps1' '@INSTANCE@'
    $watches = '@WATCHES@'
    # Also when the machine is restarted.
    if ($watches) { Start-Own 'watch' $watches @{ Trigger = New-ScheduledTaskTrigger -AtStartup } }
    Write-Own 'bootstrap.ps1' '@SCRIPT@'
    Write-Own 'variables' '@VARIABLES@'
    Start-Own 'bootstrap' "-Began $began" @{}
} catch {
    "ec2ud: the user-data failed: $_; powering off"
    Stop-Computer -Force
}
